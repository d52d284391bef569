#!/bin/sh
# The checks and all tests, as CI runs them.
#   scripts/test.sh [PYTEST-ARGUMENT …]
set -eu
cd "$(dirname "$0")/.."
bin=.venv/bin
$bin/ruff check --quiet .
$bin/ruff format --check --quiet .
$bin/mypy
exec scripts/with_engine.sh $bin/python -m pytest -q "$@"
