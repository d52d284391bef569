"""Starts the python-flask runtime inside a sandbox; ``containerpub_web`` is what it consists of, beside the python
runtime's ``containerpub_runtime``.

In the image the python runtime's side lies beside this file; in its source folder otherwise.
"""

from __future__ import annotations

import os
import sys

# Not when the function's own children import this file, as multiprocessing lets those do that it spawns.
if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    folders = (here, os.path.join(os.path.dirname(here), "python"))
    sys.path[0] = next(one for one in folders if os.path.isdir(os.path.join(one, "containerpub_runtime")))
    import containerpub_runtime.serving  # notes first what Python has imported, and puts the SDK's folder on the path

    sdk, sys.path[0] = sys.path[0], here
    from containerpub_web.app import WebApp

    sys.path[0] = sdk
    containerpub_runtime.serving.main(
        WebApp, also_wanted=("difflib", "gettext", "html", "http.server", "pkgutil", "pprint")
    )
