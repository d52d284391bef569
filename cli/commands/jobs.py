"""``job``, ``jobs``, ``cancel``, ``redrive``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import JobId, JsonFlag, at_least, in_session, output_of
from cli.errors import ExitStatus, UsageError
from cli.output import Output

if TYPE_CHECKING:
    from cli.session import Session

Limit = Annotated[int, typer.Option("--limit", help="How many at most.")]
OptionalJobId = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]", help="The job's id, or as much of its beginning as no other job has.", show_default=False
    ),
]


def job(
    ctx: typer.Context,
    job_id: JobId,
    wait: Annotated[
        int | None, typer.Option("--wait", metavar="SECONDS", help="Wait until it is final, at most this long.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what it writes until it is final.")] = False,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Show a job, with its result once it has one."""
    output = output_of(ctx, as_json)
    at_least("--wait", wait, 0)
    if follow and wait is not None:
        raise UsageError("--follow waits as long as the job takes.", hint="Leave --wait out.")

    async def action(session: Session) -> ExitStatus:
        from cli.job_ids import whole_id
        from cli.waiting import is_final, status_of, wait_for_job

        whole = await whole_id(session, job_id)
        if follow:
            return await _follow(session, output, whole)
        found = await wait_for_job(session, whole, wait_s=wait or 0)
        show(output, found)
        if wait is not None and not is_final(found):
            output.note(f"Still {found.get('status')} after {wait} s.")
            return ExitStatus.WAIT_RAN_OUT
        return status_of(found)

    return in_session(output, action)


async def _follow(session: Session, output: Output, job_id: str) -> ExitStatus:
    from cli.commands.logs import lines
    from cli.following import events
    from cli.waiting import status_of

    found: dict[str, Any] = {}
    async for event in events(session, job_id):
        if event.name == "state":
            if found and event.data.get("status") != found.get("status"):
                output.note(f"The job is {event.data.get('status')}.")
            found = event.data
        elif event.name == "log":
            header = f"#{event.data.get('attempt', '-')} {event.data.get('stream', '-')}/{event.data.get('level', '-')}"
            for line in lines(header, event.data.get("message")):
                output.note(line)
        elif event.name == "progress":
            fraction = event.data.get("fraction")
            shown = f"{fraction:.0%}" if isinstance(fraction, int | float) else "-"
            output.note(f"{shown} {event.data.get('message', '')}".rstrip())
    show(output, found)
    return status_of(found)


def jobs(
    ctx: typer.Context,
    function: Annotated[str | None, typer.Option("--function", help="Only this function's, by name or id.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="Only those in this state.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Only those that failed for this reason.")] = None,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """List jobs, newest first."""
    output = output_of(ctx, as_json)
    at_least("--limit", limit, 1)
    params = _given(function=function, status=status, reason=reason)

    async def action(session: Session) -> ExitStatus:
        from cli.job_ids import short_ids
        from cli.job_state import STATE_COLUMNS, state_of
        from cli.session import pages

        found = await pages(session, "/api/jobs", params, limit=limit)
        if output.as_json:
            output.document({"items": found})
        else:
            short = short_ids([str(each.get("id")) for each in found])
            rows = [[key, each.get("function"), *state_of(each)] for key, each in zip(short, found, strict=True)]
            output.table(["JOB", "FUNCTION", *STATE_COLUMNS], rows)
        return ExitStatus.OK

    return in_session(output, action)


def cancel(
    ctx: typer.Context,
    job_id: OptionalJobId = None,
    function: Annotated[str | None, typer.Option("--function", help="All of this function's.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="All in this state.")] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Cancel a job that is not final yet, or all that the options name."""
    output = output_of(ctx, as_json)
    params = _given(function=function, status=status)
    _one_way(job_id, params, "--function or --status")

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.job_ids import whole_id
        from cli.session import job_path

        if job_id is not None:
            path = job_path(await whole_id(session, job_id), "cancel")
            found = (await session.call(Request(method="POST", path=path))).document
            if output.as_json:
                output.document(found)
            else:
                output.line(f"Job {found.get('id', job_id)} is {found.get('status')}.")
            return ExitStatus.OK
        count = 0
        more = True
        while more:
            page = (await session.call(Request(method="POST", path="/api/jobs/cancel", params=params))).document
            count += int(page.get("cancelled", 0))
            more = bool(page.get("more"))
        if output.as_json:
            output.document({"cancelled": count})
        else:
            output.line(f"{count} jobs were cancelled.")
        return ExitStatus.OK

    return in_session(output, action)


def redrive(
    ctx: typer.Context,
    job_id: OptionalJobId = None,
    function: Annotated[str | None, typer.Option("--function", help="All failed ones of this function.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="All that failed for this reason.")] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Repeat a failed job as a new one, or all failed ones that the options name and that were not repeated yet."""
    output = output_of(ctx, as_json)
    params = _given(function=function, reason=reason)
    _one_way(job_id, params, "--function or --reason")

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.job_ids import whole_id
        from cli.session import job_path

        if job_id is not None:
            path = job_path(await whole_id(session, job_id), "redrive")
            items = [(await session.call(Request(method="POST", path=path))).document]
        else:
            items, more = [], True
            while more:
                page = (await session.call(Request(method="POST", path="/api/jobs/redrive", params=params))).document
                items += page.get("items", [])
                more = bool(page.get("more"))
        if output.as_json:
            output.document({"items": items})
        else:
            output.table(["JOB", "REPEATS"], [[each.get("job_id"), each.get("redrive_of")] for each in items])
        return ExitStatus.OK

    return in_session(output, action)


def _given(**params: str | None) -> dict[str, str]:
    return {name: value for name, value in params.items() if value is not None}


def _one_way(job_id: str | None, params: dict[str, str], options: str) -> None:
    if (job_id is None) == (not params):
        raise typer.BadParameter(f"give a job's id, or {options}.")


def show(output: Output, found: dict[str, Any]) -> None:
    """Print a job: its members and error, then its result on its own."""
    from cli.job_state import job_fields

    if output.as_json:
        output.document(found)
        return
    output.fields(job_fields(found))
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
