"""Which function and version an invoke means, remembered until a push says that it changed."""

from __future__ import annotations

import time
from uuid import UUID

from api.single_flight import SingleFlight
from shared.errors import Conflict, NotFound
from shared.functions import FunctionSettings, Target
from shared.postgres.functions import Functions
from shared.queue.queue import Change

_REMEMBER_S = 5.0  # in case a push got lost
_REMEMBER_MOST = 10_000


class Resolver:
    """Entries are dropped by :meth:`changed` and, when pushes may have been missed, by :meth:`forget_all`."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._known: dict[tuple[UUID, str], tuple[float, Target]] = {}
        self._changes = 0
        self._asked: SingleFlight[Target] = SingleFlight()

    async def resolve(self, user: UUID, reference: str) -> tuple[Target, UUID, FunctionSettings]:
        """The target of an invoke, its version and that version's settings.

        :raises NotFound: if the user has no such function. :raises Conflict: if it cannot be called now.
        """
        key = (user, reference)
        known = self._known.get(key)
        if known is not None and time.monotonic() < known[0]:
            target = known[1]
        else:
            # The key has the number of changes: a call after a change must not share an answer from before it.
            target = await self._asked.ask((*key, self._changes), lambda: self._look_up(user, reference))
        if target.status != "active":
            raise Conflict(f"The function {target.name} is stopped; start it first.", code="function_stopped")
        if target.version_id is None or target.settings is None:
            raise Conflict(
                f"The function {target.name} has no version that was built; look at its latest deploy.",
                code="no_active_version",
            )
        return target, target.version_id, target.settings

    async def _look_up(self, user: UUID, reference: str) -> Target:
        changes = self._changes
        found = await self._functions.resolve(user, reference)
        if found is None:
            raise no_such_function(reference)
        if changes == self._changes:  # else the answer may be out of date already
            if len(self._known) >= _REMEMBER_MOST:
                self._known.clear()
            self._known[user, reference] = (time.monotonic() + _REMEMBER_S, found)
        return found

    def changed(self, message: bytes) -> None:
        """Take a push that a function changed."""
        function = Change.decode(message).function
        self._changes += 1
        self._known = {key: entry for key, entry in self._known.items() if entry[1].function_id != function}

    def forget_all(self) -> None:
        self._changes += 1
        self._known.clear()


def no_such_function(reference: str) -> NotFound:
    return NotFound(f"You have no function {reference[:80]!r}; deploy it first.", code="function_not_found")
