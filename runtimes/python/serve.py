"""Starts the python runtime inside a sandbox; ``containerpub_runtime`` is what it consists of."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # The package is here; once it is imported it puts the SDK's folder there instead.
    sys.path[0] = os.path.dirname(os.path.abspath(__file__))
    from containerpub_runtime.serving import main

    main()
