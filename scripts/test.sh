#!/bin/sh
# The checks and all tests, as CI runs them: side by side, then one after another those that take times.
#   scripts/test.sh [PYTEST-ARGUMENT …]     with arguments: one run of pytest with them
# TEST_JOBS is how many run side by side; the default is the number of cores and one, for tests wait a lot.
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = --inside ]; then
    jobs=${TEST_JOBS:-$(($(nproc 2>/dev/null || echo 1) + 1))}
    failed=0
    .venv/bin/python -m pytest -q -n "$jobs" --dist worksteal -m "not alone" || failed=$?
    .venv/bin/python -m pytest -q -m alone || failed=$?
    exit $failed
fi
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
if [ $# = 0 ]; then
    exec scripts/with_engine.sh scripts/test.sh --inside
fi
exec scripts/with_engine.sh .venv/bin/python -m pytest -q "$@"
