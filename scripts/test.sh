#!/bin/sh
# The checks and all tests, as CI runs them: side by side, then one after another those that take times. What fails once
# has failed: nothing runs again.
#   scripts/test.sh [PYTEST-ARGUMENT …]     with arguments: one run of pytest with them
# TEST_JOBS is how many run side by side; the default is the number of cores and one, for tests wait a lot.
set -eu
cd "$(dirname "$0")/.."
pytest=".venv/bin/python -m pytest -q"

if [ "${1:-}" = --inside ]; then
    jobs=${TEST_JOBS:-$(($(nproc 2>/dev/null || echo 1) + 1))}
    failed=0
    $pytest -n "$jobs" --dist worksteal -m "not alone" || failed=$?
    [ "$failed" -le 1 ] || exit "$failed" # interrupted, or pytest itself went wrong
    $pytest -m alone || failed=$?
    exit "$failed"
fi
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
if [ $# = 0 ]; then
    exec scripts/with_engine.sh scripts/test.sh --inside
fi
exec scripts/with_engine.sh $pytest "$@"
