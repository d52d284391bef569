#!/bin/sh
# Starts what the entrypoints of the images postgres, redis and registry start: the given command; without one, Postgres
# where POSTGRES_USER is set, and the registry elsewhere.
set -eu
[ $# = 0 ] || exec "$@"

if [ -z "${POSTGRES_USER:-}" ]; then
    cat >/tmp/registry.yml <<'CONF'
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":5000"}
CONF
    exec docker-registry serve /tmp/registry.yml
fi

data=/var/lib/postgresql/data
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 0700 "$data"
    install -d -o postgres -g postgres /run/postgresql
    exec setpriv --reuid postgres --regid postgres --init-groups "$0"
fi

if [ ! -s "$data/PG_VERSION" ]; then
    secret=$(mktemp)
    printf '%s\n' "${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:-/dev/null}")}" >"$secret"
    initdb --pgdata "$data" --username "$POSTGRES_USER" --pwfile "$secret" --auth-local trust --auth-host scram-sha-256
    rm "$secret"
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    # On its socket only, as the image does: nothing outside meets a server without its databases.
    pg_ctl --pgdata "$data" --wait --options "-c listen_addresses=''" start
    createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        sh "$script"
    done
    pg_ctl --pgdata "$data" --wait --mode fast stop
fi
exec postgres -D "$data" -c listen_addresses='*'
