"""A generic sandbox: a sandbox that was started before its function was known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from worker.errors import EngineUnavailable
from worker.sandbox.attached import AttachedSandbox
from worker.sandbox.contract import GenericSpec, SandboxSpec, generic_spec


class AttachedGeneric:
    """Implements :class:`worker.sandbox.contract.GenericSandbox`."""

    def __init__(
        self,
        sandbox: AttachedSandbox,
        spec: GenericSpec,
        outfit: Callable[[SandboxSpec], Awaitable[Mapping[str, str]]],
    ) -> None:
        """``outfit`` puts a version's code where the sandbox will find it, and returns its environment."""
        self.id = sandbox.id
        self.spec = spec
        self._sandbox = sandbox
        self._outfit = outfit
        self._taken = False
        self._became = False

    @property
    def usable(self) -> bool:
        return not self._taken and self._sandbox.reusable

    async def specialize(self, spec: SandboxSpec) -> AttachedSandbox:
        if generic_spec(spec) != self.spec:
            raise ValueError(f"the generic sandbox {self.id} is not of the function's runtime, size and network")
        if self._taken:
            raise ValueError(f"the generic sandbox {self.id} was specialized before")
        self._taken = True
        try:
            environment = await self._outfit(spec)
            if not self._sandbox.reusable:
                raise EngineUnavailable(f"The generic sandbox {self.id} has died.")
            self._sandbox.specialize(environment)
            await self._sandbox.imported(spec.timeout_ms / 1000)
        except BaseException:
            await self._sandbox.destroy()
            raise
        self._became = True
        return self._sandbox

    async def destroy(self) -> None:
        """As :meth:`worker.sandbox.contract.Sandbox.destroy`; a sandbox that it has become is not its to destroy."""
        if not self._became:
            await self._sandbox.destroy()
