#!/bin/sh
# Starts Redis, or with `check` asks the running one whether it serves, inside the Redis image.
# The password comes from REDIS_PASSWORD or from the file REDIS_PASSWORD_FILE, never from a command line.
set -eu
password=${REDIS_PASSWORD:-}
if [ -z "$password" ] && [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
    password=$(cat "$REDIS_PASSWORD_FILE")
fi
case $password in
    '' | *[!A-Za-z0-9_-]*)
        echo "redis: REDIS_PASSWORD must be set, to letters, digits, - and _ only" >&2
        exit 1
        ;;
esac

if [ "${1:-}" = check ]; then
    [ "$(REDISCLI_AUTH=$password redis-cli ping)" = PONG ]
    exit
fi

# Every change reaches the disk within a second, and nothing is ever dropped to make room: a full Redis refuses writes,
# and accepted jobs wait in Postgres.
exec docker-entrypoint.sh redis-server \
    --appendonly yes --appendfsync everysec --save '' --dir /data \
    --maxmemory "${REDIS_MAXMEMORY:-0}" --maxmemory-policy noeviction - <<CONF
requirepass $password
CONF
