"""``invoke``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import FunctionName, JsonFlag, at_least, in_session, output_of
from cli.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from cli.session import Session

LONGEST_RUN_S = 930.0  # the longest timeout a function may have, and what a call may wait in the queue


def invoke(
    ctx: typer.Context,
    name: FunctionName,
    body: Annotated[
        str | None,
        typer.Option(
            "--body", metavar="JSON|@FILE", help="The event's body; @- is stdin, as is a pipe without --body."
        ),
    ] = None,
    body_file: Annotated[
        str | None,
        typer.Option("--body-file", metavar="FILE", help="The bytes of a file as the event's body; - is stdin."),
    ] = None,
    query: Annotated[list[str] | None, typer.Option("--query", metavar="NAME=VALUE", help="Repeatable.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", metavar="NAME: VALUE", help="Repeatable.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="The event's method.")] = None,
    path: Annotated[str | None, typer.Option("--path", help="The event's path.")] = None,
    asynchronous: Annotated[bool, typer.Option("--async", help="Do not wait: print the job's id.")] = False,
    wait: Annotated[
        int | None,
        typer.Option("--wait", metavar="SECONDS", help="Wait this long; the job goes on when it takes longer."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", metavar="KEY", help="A call that is repeated with the same key runs once."),
    ] = None,
    callback_url: Annotated[
        str | None,
        typer.Option("--callback-url", metavar="URL", help="Where the job's end is told; implies --async."),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option("--delay", metavar="SECONDS", help="Run it that much later; implies --async."),
    ] = None,
    run_at: Annotated[
        str | None,
        typer.Option("--run-at", metavar="TIME", help="Run it at a time (RFC 3339, with an offset); implies --async."),
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option("--expires-at", metavar="TIME", help="Do not start it after this time; implies --async."),
    ] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", metavar="low|normal|high", help="Before or after others of yours.")
    ] = None,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Run a function and print its result."""
    from cli.event import encoded, pairs, read_body

    output = output_of(ctx, as_json)
    at_least("--wait", wait, 0)
    at_least("--delay", delay, 0)
    if body is not None and body_file is not None:
        raise UsageError("--body and --body-file exclude each other.")
    if delay is not None and run_at is not None:
        raise UsageError("--delay and --run-at exclude each other.")
    if priority not in (None, "low", "normal", "high"):
        raise UsageError(f"--priority {priority!r} is not low, normal or high.")
    given = {"callback_url": callback_url, "run_at": run_at, "expires_at": expires_at}
    params = {name: value for name, value in given.items() if value is not None}
    if delay is not None:
        params["delay"] = str(delay)
    asynchronous = asynchronous or (bool(params) and wait is None)
    if priority is not None:
        params["priority"] = priority
    if asynchronous and wait is not None:
        raise UsageError(
            "--async and --wait exclude each other.", hint="Use `containerpub job ID --wait N` afterwards."
        )
    event: dict[str, object]
    if body_file is None:
        event = {"body": read_body(output.env, body)}
    else:
        event = {"body_base64": encoded(output.env, body_file)}
    if query:
        event["query"] = pairs(query, "--query", "=")
    if header:
        event["headers"] = pairs(header, "--header", ":=")
    if method is not None:
        event["method"] = method
    if path is not None:
        event["path"] = path
    headers = {}
    if asynchronous:
        headers["Prefer"] = "respond-async"
    elif wait is not None:
        headers["Prefer"] = f"wait={wait}"
    if key is not None:
        headers["Idempotency-Key"] = key

    sending = False

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.commands.jobs import show_error
        from cli.session import function_path

        nonlocal sending
        sending = True
        answer = await session.call(
            Request(
                method="POST",
                path=function_path(name, "invoke"),
                params=params,
                headers=headers,
                body=event,
                wait_s=LONGEST_RUN_S if wait is None else wait,
            )
        )
        found = answer.document
        if output.as_json:
            output.document(found)
        if answer.http_status == 202:
            if not output.as_json:
                output.line(str(found.get("job_id")))
            if asynchronous:
                return ExitStatus.OK
            output.note(f"Not done yet. Wait on with `containerpub job {found.get('job_id')} --wait 60`.")
            return ExitStatus.WAIT_RAN_OUT
        if found.get("success") is True:
            if not output.as_json:
                output.value(found.get("result"))
            return ExitStatus.OK
        if not output.as_json:
            show_error(output, found.get("error"))
            output.note(f"reason: {found.get('reason')}, job: {found.get('job_id')}")
        return ExitStatus.FAILED

    try:
        return in_session(output, action)
    except KeyboardInterrupt:
        if sending:
            output.note(_after_interrupt(asynchronous=asynchronous, repeatable=key is not None))
        raise


def _after_interrupt(*, asynchronous: bool, repeatable: bool) -> str:
    """What becomes of a call whose command was interrupted."""
    if repeatable:
        return "The job goes on if it was accepted. The same command with the same key waits for it again."
    if asynchronous:
        return "The job goes on if it was accepted: see `containerpub jobs`."
    return "The server cancels the call, since nobody waits for it. With --async it would go on as a job."
