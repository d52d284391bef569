"""Who the code of a tenant is in its container: a user of its own, and the names that programs look up.

The kernel counts inotify instances, watches, pages of pipes, message queues and pending signals by user, over all
containers: a sandbox that took them all would leave none to others of the same user. So every container has another
user while it lives.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import Path

from worker.errors import EngineUnavailable

NAME = "sandbox"
_DIGITS = 4
"""Of a sandbox's id, at its end, are its user's place in the range: the id tells the user."""
_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


class SandboxUsers:
    """Hands out the user ids of one range in turn, beginning anywhere in it, as other workers may share the machine."""

    def __init__(self, users: range) -> None:
        """At least as many as there may be sandboxes, at most 65,536."""
        self._users = users
        self._next = secrets.randbelow(len(users))

    def new_id(self, live: Collection[str]) -> str:
        """An id for a new sandbox, 16 hexadecimal digits, whose user no sandbox of ``live`` has.

        :raises EngineUnavailable: all users of the range are taken.
        """
        taken = {self._place(sandbox_id) for sandbox_id in live}
        for _ in self._users:
            place, self._next = self._next, (self._next + 1) % len(self._users)
            if place not in taken:
                return f"{secrets.token_hex(6)}{place:0{_DIGITS}x}"
        raise EngineUnavailable(
            f"All {len(self._users)} user ids of sandboxes are taken: raise SANDBOX_USERS above their number."
        )

    def of(self, sandbox_id: str) -> int:
        return self._users[self._place(sandbox_id)]

    def any(self) -> int:
        """For a container that is no sandbox and lives for a short time."""
        return self.of(self.new_id(()))

    @staticmethod
    def _place(sandbox_id: str) -> int:
        return int(sandbox_id[-_DIGITS:], 16)


def etc_binds(folder: Path, uid: int, *, hosts: bool) -> list[str]:
    """Write what containers find in ``/etc`` to ``folder``, and return it as the engine takes binds. Blocking.

    :param hosts: whether also the names of the container itself; an engine writes them for a container with a network.
    """
    files = {
        "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\n{NAME}:x:{uid}:{uid}::/tmp:/usr/sbin/nologin\n",
        "group": f"root:x:0:\n{NAME}:x:{uid}:\n",
    }
    if hosts:
        files["hosts"] = _HOSTS
    for name, text in files.items():
        path = folder / name
        path.write_text(text, "ascii")
        path.chmod(0o644)  # whatever the umask says
    return [f"{folder / name}:/etc/{name}:ro" for name in files]
