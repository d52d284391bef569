"""``python -m scheduler``: one scheduler process."""

from __future__ import annotations

import os
import sys

from scheduler.service import serve
from shared.process import run

if __name__ == "__main__":
    sys.exit(run(serve, os.environ))
