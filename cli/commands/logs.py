"""``logs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import FunctionName, JsonFlag, at_least, in_session, output_of
from cli.errors import ExitStatus
from cli.output import Output

if TYPE_CHECKING:
    from cli.session import Session


def logs(
    ctx: typer.Context,
    name: FunctionName,
    limit: Annotated[int, typer.Option("--limit", help="How many entries at most.")] = 100,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="Only this job's.")] = None,
    level: Annotated[str | None, typer.Option("--level", help="Only this level's.")] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Show what a function wrote, oldest first. Control characters show as escapes."""
    output = output_of(ctx, as_json)
    at_least("--limit", limit, 1)
    params = {key: value for key, value in (("job_id", job), ("level", level)) if value is not None}

    async def action(session: Session) -> ExitStatus:
        from cli.session import function_path, pages

        entries = in_order(await pages(session, function_path(name, "logs"), params, limit=limit))
        if output.as_json:
            output.document({"items": entries})
        else:
            for entry in entries:
                write(output, entry)
        return ExitStatus.OK

    return in_session(output, action)


def in_order(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``entries`` oldest first, whichever way round the server lists them."""
    newest_first = len(entries) > 1 and str(entries[0].get("at", "")) > str(entries[-1].get("at", ""))
    return entries[::-1] if newest_first else entries


def write(output: Output, entry: dict[str, Any]) -> None:
    """One entry. Every line of its message gets the header, so that no message can pass for another job's entry."""
    header = " ".join(
        (
            str(entry.get("at", "-")),
            str(entry.get("job_id", "-")),
            f"#{entry.get('attempt', '-')}",
            f"{entry.get('stream', '-')}/{entry.get('level', '-')}",
        )
    )
    for line in lines(header, entry.get("message", "")):
        output.line(line)


def lines(header: str, message: object) -> list[str]:
    """The lines of a message, each behind the header."""
    return [f"{header}  {line}" for line in str(message).rstrip("\n").split("\n")]
