#!/bin/sh
# Base images for the runtimes: pulled where a registry answers, else made from the distribution's packages.
set -eu
cd "$(dirname "$0")/.."
for conf in images/*/image.conf; do
    image=$(sed -n "s/^IMAGE=['\"]*\([^'\"]*\)['\"]*$/\1/p" "$conf")
    name=$(basename "$(dirname "$conf")")
    if docker image inspect "$image" >/dev/null 2>&1; then
        echo "images: $image is there"
    elif docker pull --quiet "$image" >/dev/null 2>&1; then
        echo "images: pulled $image"
    else
        echo "images: $image cannot be pulled; making a stand-in"
        images/build.sh "$name"
    fi
done
