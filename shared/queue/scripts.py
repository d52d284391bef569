"""The queue's atomic steps as Lua, and how they get into Redis.

Redis forgets scripts when it restarts, so an unknown script is how everybody notices that the queue's fast copy may
have lost writes. Then every step answers :class:`QueueClosed` until the leader has opened a new generation and loaded
the scripts (``scheduler/rebuild.py``). A script may also be unknown because it is another release's than the leader's,
while one replaces the other: a process loads its own into a queue that is open, in a Redis that was not started since,
and whose data is laid out as it knows it. Scripts are loaded by calling them without arguments: what ``SCRIPT LOAD``
loads, Redis before version 7 writes to its file and knows after a restart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

LAYOUT = "2"
"""Another one when scripts of two releases could not work on the same data: then the older one's steps fail until its
process is replaced."""
USABLE = b"usable"


class QueueClosed(Exception):
    """The queue is being rebuilt, or no leader has opened it yet; try again soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    name: str
    source: str
    sha: str


def _load(name: str) -> Script:
    folder = resources.files("shared.queue") / "lua"
    source = (folder / "prelude.lua").read_text("utf-8") + "\n" + (folder / f"{name}.lua").read_text("utf-8")
    return Script(name=name, source=source, sha=hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


ENQUEUE = _load("enqueue")
EXCHANGE = _load("exchange")
CANCEL = _load("cancel")
EXPIRE_WORKER = _load("expire_worker")
REGISTER = _load("register")
HELD = _load("held")
STOP = _load("stop")
START = _load("start")

SCRIPTS = (ENQUEUE, EXCHANGE, CANCEL, EXPIRE_WORKER, REGISTER, HELD, STOP, START)

INSPECT = _load("inspect")
"""No step, so Redis may not know it while the queue is open (see ``shared/queue/conservation.py``)."""
