#!/bin/sh
# The checks and all tests, as CI runs them: side by side, then one after another those that take times.
#   scripts/test.sh [PYTEST-ARGUMENT …]     with arguments: one run of pytest with them
# TEST_JOBS is how many run side by side; the default is the number of cores and one, for tests wait a lot.
set -eu
cd "$(dirname "$0")/.."
pytest=".venv/bin/python -m pytest -q"
most_again=3

failed_tests() {
    .venv/bin/python -c 'import json; print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")'
}

if [ "${1:-}" = --inside ]; then
    jobs=${TEST_JOBS:-$(($(nproc 2>/dev/null || echo 1) + 1))}
    failed=0
    $pytest -n "$jobs" --dist worksteal -m "not alone" || failed=$?
    [ "$failed" -le 1 ] || exit "$failed"
    $pytest -m alone || failed=$?
    [ "$failed" = 1 ] || exit "$failed"
    again=$(failed_tests)
    [ "$(echo "$again" | wc -l)" -le "$most_again" ] || exit 1
    # A busy machine makes a few late. What fails twice is broken; what does not is a race, in the test or in the platform.
    echo "test: once more, one after another:"
    $pytest --last-failed --last-failed-no-failures none
    printf 'test: failed beside others and passed alone, a race to be found:\n%s\n' "$again"
    exit 0
fi
.venv/bin/ruff check --quiet .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
if [ $# = 0 ]; then
    exec scripts/with_engine.sh scripts/test.sh --inside
fi
exec scripts/with_engine.sh $pytest "$@"
