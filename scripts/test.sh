#!/bin/sh
# The checks and all tests, as CI runs them.
#   scripts/test.sh [PYTEST-ARGUMENT …]
set -eu
cd "$(dirname "$0")/.."
bin=.venv/bin
$bin/ruff check --quiet .
$bin/ruff format --check --quiet .
$bin/mypy
# Much of a test is waiting for something to start or to end: two a core.
exec scripts/with_engine.sh $bin/python -m pytest -q -n $((2 * $(getconf _NPROCESSORS_ONLN))) --dist worksteal "$@"
