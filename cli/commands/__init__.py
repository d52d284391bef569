"""The commands, a module a noun. Their bodies import what is slow to import; this package must stay quick."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli.environment import Environment
from cli.errors import ExitStatus, UsageError
from cli.output import Output

if TYPE_CHECKING:
    from cli.session import Session

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
FunctionName = Annotated[str, typer.Argument(metavar="NAME", help="The function's name or id.", show_default=False)]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The job's id, or as much of its beginning as no other job has.", show_default=False
    ),
]


@dataclass(slots=True, kw_only=True)
class CliContext:
    """What typer hands to every command as ``ctx.obj``."""

    env: Environment
    as_json: bool = False


def output_of(ctx: typer.Context, as_json: bool) -> Output:
    """The output; ``--json`` counts before the command's name and after it."""
    context = ctx.obj
    if not isinstance(context, CliContext):
        raise TypeError("the command was started without a CliContext")
    context.as_json = context.as_json or as_json
    return Output(context.env, as_json=context.as_json)


def in_session(output: Output, action: Callable[[Session], Awaitable[ExitStatus]]) -> ExitStatus:
    """Run ``action`` with an open session to its end."""
    import asyncio

    from cli.session import Session

    async def run() -> ExitStatus:
        async with Session.open(output) as session:
            return await action(session)

    return asyncio.run(run())


def at_least(name: str, value: float | None, minimum: float) -> None:
    """Raise :class:`UsageError` unless option ``name`` is absent or a number from ``minimum`` up."""
    if value is not None and not minimum <= value < float("inf"):
        raise UsageError(f"{name} must be at least {minimum:g}, not {value:g}.")
