#!/bin/sh
# Makes the database FUNCTION_DB for functions beside the platform's own, and lets nobody into either who was not let
# in by name. The Postgres image runs this once, when it makes its data folder; for a folder that exists already run it
# yourself, as often as you like:
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/10-functions-db.sh
if [ -n "${FUNCTION_DB:-}" ]; then
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
        --set functions="$FUNCTION_DB" --set platform="$POSTGRES_DB" <<'SQL'
SELECT format('CREATE DATABASE %I', :'functions')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'functions') \gexec
REVOKE CONNECT, TEMPORARY ON DATABASE :"functions" FROM PUBLIC;
REVOKE CONNECT, TEMPORARY ON DATABASE :"platform" FROM PUBLIC;
SQL
fi
