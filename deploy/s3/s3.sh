#!/bin/sh
# Starts the S3 server on the folder /data, with one bucket, inside the image of versitygw. A bucket is a folder there.
# The secret key comes from S3_SECRET_ACCESS_KEY or from the file S3_SECRET_ACCESS_KEY_FILE.
set -eu
secret=${S3_SECRET_ACCESS_KEY:-}
if [ -z "$secret" ] && [ -n "${S3_SECRET_ACCESS_KEY_FILE:-}" ]; then
    secret=$(cat "$S3_SECRET_ACCESS_KEY_FILE")
fi
if [ -z "$secret" ]; then
    echo "s3: S3_SECRET_ACCESS_KEY must be set" >&2
    exit 1
fi
mkdir -p "/data/$S3_BUCKET_NAME"
export ROOT_ACCESS_KEY="$S3_ACCESS_KEY_ID" ROOT_SECRET_KEY="$secret"
exec versitygw --port :7070 --region "$S3_REGION" --health /health posix /data
