#!/bin/sh
# Makes the files that compose.production.yaml takes its secrets from, and a .env to go with them. What is there already
# is left alone, so running it again is safe; to change a secret, see docs/how-to/deploy-with-compose.md.
#
#   deploy/make-secrets.sh          POSTGRES_USER, POSTGRES_DB and SECRETS_DIR are heeded
set -eu
cd "$(dirname "$0")/.."
folder=${SECRETS_DIR:-./secrets}
user=${POSTGRES_USER:-containerpub}
database=${POSTGRES_DB:-containerpub}

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
random64() { head -c "$1" /dev/urandom | base64 | tr -d '\n'; }

# The folder is closed; the files in it are open, because each container reads them as a user of its own.
write() {
    [ -e "$folder/$1" ] || { printf '%s' "$2" >"$folder/$1" && chmod 444 "$folder/$1" && echo "made $folder/$1"; }
}

mkdir -p "$folder"
chmod 700 "$folder"
write jwt_secret "$(random 32)"
write encryption_keys "key1:$(random64 32)"
write postgres_password "$(random 24)"
write redis_password "$(random 24)"
write s3_secret_access_key "$(random 24)"
write database_url "postgresql://$user:$(cat "$folder/postgres_password")@postgres:5432/$database"
write redis_url "redis://:$(cat "$folder/redis_password")@redis:6379/0"

if [ -e .env ]; then
    echo ".env is there; compare it with deploy/production.env.example"
else
    socket=${DOCKER_SOCKET:-/var/run/docker.sock}
    gid=$(stat -c %g "$socket" 2>/dev/null || true)
    sed -e "s|^DOCKER_GID=.*|DOCKER_GID=$gid|" -e "s|^SECRETS_DIR=.*|SECRETS_DIR=$folder|" \
        deploy/production.env.example >.env
    {
        echo "POSTGRES_USER=$user"
        echo "POSTGRES_DB=$database"
    } >>.env
    echo "made .env"
    [ -n "$gid" ] || echo "set DOCKER_GID in .env: $socket was not found"
fi
