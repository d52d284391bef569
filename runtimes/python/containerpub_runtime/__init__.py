"""The python runtime inside a sandbox: connects to the worker, imports the function, serves calls one by one.

Only the standard library of Python 3.9 and later. Function code shares this process: nothing kept here is secret from
it, and the worker trusts nothing that comes from here. A module of the function's that had the name of one of ours
would not be found, so all of ours are in this one package.

The image has no compiled files: every module is compiled at each start. So what only a generic sandbox needs
(``specialize``) is imported by one alone, and a further module has to be worth the tenth of a millisecond that finding
it takes.
"""

import os
import sys

STARTED_WITH = frozenset(sys.modules)
"""What Python has imported before anything else could."""

_named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
BY_ENVIRONMENT = [entry for entry in sys.path[1:] if entry and entry in {*_named, *map(os.path.abspath, _named)}]
"""The function's folders that Python has put on the path because of ``PYTHONPATH``. They are taken off it until the
function is imported: modules in them may have names of the standard library's."""
sys.path[1:] = [entry for entry in sys.path[1:] if entry not in BY_ENVIRONMENT]

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that this package and the SDK are in."""

# So far this was the folder that the package itself was found in. The function finds the SDK there, and nothing else of
# the platform's.
sys.path[0] = os.path.join(ROOT, "sdk")
