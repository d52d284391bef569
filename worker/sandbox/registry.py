"""The sandboxes of one engine, owned from before anything of them exists until nothing of them is left.

An engine enters a sandbox here with the way to remove it, and only then begins to make it. A sandbox whose removal
fails stays here, and :meth:`SandboxRegistry.sweep` tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.errors import EngineUnavailable


@dataclass(slots=True, kw_only=True)
class _Entry:
    remove: Callable[[], Awaitable[None]]
    removing: asyncio.Task[None] | None = None

    @property
    def failed(self) -> bool:
        task = self.removing
        return task is not None and task.done() and (task.cancelled() or task.exception() is not None)


class SandboxRegistry:
    """Removals raise :class:`EngineUnavailable`."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    @property
    def ids(self) -> frozenset[str]:
        """Sandboxes of which something exists, or is about to."""
        return frozenset(self._entries)

    def enter(self, sandbox_id: str, remove: Callable[[], Awaitable[None]]) -> None:
        """Own a sandbox that is about to be made.

        :param remove: kills it, whatever of it there is, and returns when nothing is left; may be called again.
        """
        self._entries[sandbox_id] = _Entry(remove=remove)

    async def remove(self, sandbox_id: str) -> None:
        """Remove a sandbox; returns at once if it is gone. The caller may be cancelled: the removal goes on."""
        entry = self._entries.get(sandbox_id)
        if entry is None:
            return
        if entry.removing is None or entry.failed:
            entry.removing = asyncio.create_task(self._remove(sandbox_id, entry), name=f"remove-{sandbox_id}")
        await asyncio.shield(entry.removing)

    async def clear_away(self, sandbox_id: str) -> None:
        """Remove what a start that failed has made, even if the caller is cancelled. If that fails too, it is left to
        :meth:`sweep`, and the caller's own error counts."""
        task = asyncio.ensure_future(self.remove(sandbox_id))
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()

    async def sweep(self) -> int:
        """Try again to remove what could not be removed before; how many are gone now."""
        failed = [sandbox_id for sandbox_id, entry in self._entries.items() if entry.failed]
        for sandbox_id in failed:
            await self.remove(sandbox_id)
        return len(failed)

    async def close(self) -> None:
        """Remove everything; raises the first failure once every removal was tried."""
        going = [self.remove(sandbox_id) for sandbox_id in list(self._entries)]
        failures = [one for one in await asyncio.gather(*going, return_exceptions=True) if one is not None]
        if failures:
            raise failures[0]

    async def _remove(self, sandbox_id: str, entry: _Entry) -> None:
        try:
            await entry.remove()
        except OSError as error:
            raise EngineUnavailable(f"A sandbox's folder cannot be removed: {error}") from error
        del self._entries[sandbox_id]
