#!/bin/sh
# Makes .venv with exactly what a lock file names, and this project in it.
#   scripts/venv.sh PYTHON LOCK
set -eu
python=$1 lock=$2

"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"ContainerPub needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 …")
PY
if [ ! -x .venv/bin/pip ]; then
    echo "setup: making .venv"
    "$python" -m venv .venv || { echo "setup: the venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
fi
echo "setup: installing $lock"
.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r "$lock"
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --editable .
