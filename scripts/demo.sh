#!/bin/sh
# The main job from nothing to the records it leaves, on a data folder of its own that is removed at the end.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
folder=$(mktemp -d "${TMPDIR:-/tmp}/containerpub-demo.XXXXXX")
platform=

stop() {
    status=$?
    if [ -n "$platform" ] && kill -0 "$platform" 2>/dev/null; then
        step "Stop"
        kill -TERM "$platform"
        wait "$platform" || status=$?
    fi
    [ "$status" = 0 ] || { echo; echo "demo: failed; the platform said:"; tail -n 40 "$folder/up.log" 2>/dev/null; }
    rm -rf "$folder"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n== %s\n' "$*"; }
run() { printf '$ containerpub %s\n' "$*"; "$bin/containerpub" "$@"; }

# A container engine without a base image can build nothing: get one, or go on without containers.
engine=auto
if docker version --format '{{.Server.Version}}' >/dev/null 2>&1; then
    scripts/images.sh || { echo "demo: no base image; going on with the process engine"; engine=process; }
fi

step "Start"
"$bin/containerpub" up --data "$folder/data" --port 0 --engine "$engine" >"$folder/up.log" 2>&1 &
platform=$!
waited=0
until [ -s "$folder/data/api.url" ]; do
    kill -0 "$platform" 2>/dev/null || { wait "$platform"; exit 1; }
    waited=$((waited + 1))
    [ "$waited" -lt 600 ] || { echo "demo: not ready after 60 s"; exit 1; }
    sleep 0.1
done
grep '^up ' "$folder/up.log" | grep -i engine
if grep -q '^up .*engine docker' "$folder/up.log"; then
    echo "functions run in containers"
else
    echo "functions run as processes of this machine: for development only"
fi

API_URL=$(cat "$folder/data/api.url")
CONTAINERPUB_CONFIG_DIR=$folder/config
CONTAINERPUB_PASSWORD=$("$bin/python" -c 'import secrets; print(secrets.token_urlsafe(16))')
export API_URL CONTAINERPUB_CONFIG_DIR CONTAINERPUB_PASSWORD

step "Register"
run register --email demo@example.com --username demo

step "Deploy"
run deploy examples/hello

step "Invoke and wait"
run invoke hello --body '{"name": "Ada"}'

step "Invoke as a job, and poll it by its id"
printf '$ containerpub invoke hello --async --json\n'
job=$("$bin/containerpub" invoke hello --async --json --body '{"name": "Grace"}' |
    "$bin/python" -c 'import json, sys; print(json.load(sys.stdin)["job_id"])')
echo "accepted as $job"
run job "$job" --wait 30

step "Logs"
run logs hello

step "Metrics, one row an invocation"
"$bin/python" scripts/metrics.py "$folder/data" hello
