"""``logs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import FunctionName, JsonFlag, at_least, in_session, output_of
from cli.errors import ExitStatus

if TYPE_CHECKING:
    from cli.session import Session

_CUT = "… the attempt wrote more than is kept"


def logs(
    ctx: typer.Context,
    name: FunctionName,
    limit: Annotated[int, typer.Option("--limit", help="How many lines at most, the newest.")] = 100,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="Only this job's.")] = None,
    level: Annotated[str | None, typer.Option("--level", help="Only this level's.")] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Show what a function wrote, oldest first. Control characters show as escapes."""
    output = output_of(ctx, as_json)
    at_least("--limit", limit, 1)
    params = {key: value for key, value in (("job_id", job), ("level", level)) if value is not None}

    async def action(session: Session) -> ExitStatus:
        from cli.session import function_path

        entries, more = await newest(session, function_path(name, "logs"), params, limit=limit)
        entries.reverse()
        if output.as_json:
            output.document({"items": entries, "more": more})
            return ExitStatus.OK
        written = [line for entry in entries for line in shown(entry)]
        if more or len(written) > limit:
            output.note("Older lines are left out; --limit N shows more.")
        for line in written[-limit:]:
            output.line(line)
        return ExitStatus.OK

    return in_session(output, action)


async def newest(
    session: Session, path: str, params: dict[str, str], *, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """The newest entries, until they have ``limit`` lines together, and whether there are others. An entry is a stretch
    of output, of one line or of thousands."""
    from cli.session import page

    entries: list[dict[str, Any]] = []
    written = 0
    cursor: str | None = None
    while True:
        asked = {**params, "limit": str(min(1000, limit))}
        items, cursor = await page(session, path, asked, cursor)
        for at, entry in enumerate(items, 1):
            entries.append(entry)
            written += len(shown(entry))
            if written >= limit:
                return entries, cursor is not None or at < len(items)
        if cursor is None:
            return entries, False


def shown(entry: dict[str, Any]) -> list[str]:
    """The lines of an entry. Each gets the header, so that no message can pass for another job's entry."""
    header = " ".join(
        (
            str(entry.get("at", "-")),
            str(entry.get("job_id", "-")),
            f"#{entry.get('attempt', '-')}",
            f"{entry.get('stream', '-')}/{entry.get('level', '-')}",
        )
    )
    marked = [f"{header}  {_CUT}"] if entry.get("cut") is True else []
    return [*lines(header, entry.get("message", "")), *marked]


def lines(header: str, message: object) -> list[str]:
    """The lines of a message, each behind the header."""
    return [f"{header}  {line}" for line in str(message).rstrip("\n").split("\n")]
