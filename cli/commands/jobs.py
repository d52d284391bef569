"""``job``, ``jobs``, ``cancel``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import JobId, JsonFlag, at_least, in_session, output_of
from cli.errors import ExitStatus
from cli.output import Output

if TYPE_CHECKING:
    from cli.session import Session

Limit = Annotated[int, typer.Option("--limit", help="How many at most.")]


def job(
    ctx: typer.Context,
    job_id: JobId,
    wait: Annotated[
        int | None, typer.Option("--wait", metavar="SECONDS", help="Wait until it is final, at most this long.")
    ] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Show a job, with its result once it has one."""
    output = output_of(ctx, as_json)
    at_least("--wait", wait, 0)

    async def action(session: Session) -> ExitStatus:
        from cli.waiting import is_final, status_of, wait_for_job

        found = await wait_for_job(session, job_id, wait_s=wait or 0)
        show(output, found)
        if wait is not None and not is_final(found):
            output.note(f"Still {found.get('status')} after {wait} s.")
            return ExitStatus.WAIT_RAN_OUT
        return status_of(found)

    return in_session(output, action)


def jobs(
    ctx: typer.Context,
    function: Annotated[str | None, typer.Option("--function", help="Only this function's, by name or id.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only those in this state.")] = None,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """List jobs, newest first."""
    output = output_of(ctx, as_json)
    at_least("--limit", limit, 1)
    params = {name: value for name, value in (("function", function), ("status", status)) if value is not None}

    async def action(session: Session) -> ExitStatus:
        from cli.session import pages

        found = await pages(session, "/api/jobs", params, limit=limit)
        if output.as_json:
            output.document({"items": found})
        else:
            columns = ("id", "kind", "status", "reason", "created_at", "finished_at")
            output.table([name.upper() for name in columns], [[each.get(name) for name in columns] for each in found])
        return ExitStatus.OK

    return in_session(output, action)


def cancel(ctx: typer.Context, job_id: JobId, as_json: JsonFlag = False) -> ExitStatus:
    """Cancel a job that is not final yet."""
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.session import job_path

        found = (await session.call(Request(method="POST", path=job_path(job_id, "cancel")))).document
        if output.as_json:
            output.document(found)
        else:
            output.line(f"Job {found.get('id', job_id)} is {found.get('status')}.")
        return ExitStatus.OK

    return in_session(output, action)


def show(output: Output, found: dict[str, Any]) -> None:
    """Print a job: its members and error, then its result on its own."""
    if output.as_json:
        output.document(found)
        return
    names = ("id", "kind", "status", "reason", "function_id", "version", "attempt")
    times = ("created_at", "started_at", "finished_at", "timings")
    output.fields([(name, found.get(name)) for name in (*names, *times)])
    if found.get("error") is not None:
        show_error(output, found["error"])
    if found.get("status") == "succeeded":
        output.value(found.get("result"))


def show_error(output: Output, error: object) -> None:
    """A function's error on stderr: type, message, traceback."""
    if not isinstance(error, dict):
        output.note(str(error))
        return
    kind, message = error.get("type"), error.get("message")
    output.note(": ".join(str(part) for part in (kind, message) if part) or "The job failed.")
    if isinstance(error.get("traceback"), str):
        output.note(error["traceback"].rstrip())
