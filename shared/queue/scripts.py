"""The queue's atomic steps as Lua, and how they get into Redis.

Redis forgets scripts when it restarts. So a process whose script is unknown knows that the queue in Redis may have lost
writes, and every step raises :class:`QueueClosed` until the leader has opened a new generation and loaded the scripts
(``scheduler/rebuild.py``). While one release replaces another, a script may also be unknown because the leader is of
the other release. Then a process loads its own, if the queue is open, Redis did not restart since it was opened, and
the layout of its data is the one that the process knows. Scripts are loaded by a call without arguments, not by
``SCRIPT LOAD``: before version 7, Redis writes the latter to its file and still knows the script after a restart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

LAYOUT = "2"
"""Change it when scripts of two releases cannot work on the same data: then the steps of older processes fail until
these are replaced."""
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
"""Not a step: the queue is open whether Redis knows it or not (see ``shared/queue/conservation.py``)."""
