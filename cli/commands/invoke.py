"""``invoke``."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cli.commands import FunctionName, JsonFlag, at_least, in_session, output_of
from cli.environment import Environment
from cli.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from cli.session import Session

LONGEST_RUN_S = 930.0  # the longest timeout a function may have, and what a call may wait in the queue
_STDIN_NOTICE_S = 3.0


def invoke(
    ctx: typer.Context,
    name: FunctionName,
    body: Annotated[
        str | None,
        typer.Option(
            "--body", metavar="JSON|@FILE", help="The event's body; @- is stdin, as is a pipe without --body."
        ),
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
    output = output_of(ctx, as_json)
    at_least("--wait", wait, 0)
    at_least("--delay", delay, 0)
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
    event: dict[str, object] = {"body": read_body(output.env, body)}
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

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.commands.jobs import show_error
        from cli.session import function_path

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

    return in_session(output, action)


def pairs(given: Sequence[str], option: str, separators: str) -> dict[str, str]:
    """``NAME<separator>VALUE`` texts as a mapping. Raises :class:`UsageError`, also for a name given twice."""
    found: dict[str, str] = {}
    for each in given:
        match = re.match(rf"([^{separators}]+)[{separators}]", each)
        if match is None:
            raise UsageError(f"{option} {each!r} has no name and value.", hint=f"Write it as name{separators[0]}value.")
        name = match[1].strip()
        if name in found:
            raise UsageError(f"{option} {name!r} is given twice.")
        value = each[match.end() :]
        found[name] = value.strip() if option == "--header" else value
    return found


def read_body(env: Environment, given: str | None) -> object:
    """The event's body: JSON from the argument, from ``@file``, or from stdin unless that is a terminal."""
    if given is None:
        if env.stdin.isatty():
            return None
        text = _read_stdin(env)
        return _parse(text, "the standard input") if text.strip() else None
    if given in ("-", "@-"):
        return _parse(_read_stdin(env), "the standard input")
    if not given.startswith("@"):
        return _parse(given, "--body")
    path = env.cwd / Path(given[1:])
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.") from error


def _read_stdin(env: Environment) -> str:
    # An open pipe that nobody writes to (as in cron or CI) would otherwise look like a server that hangs.
    notice = threading.Timer(
        _STDIN_NOTICE_S,
        lambda: env.stderr.write("Reading the body from stdin; give --body, or `< /dev/null` for none.\n"),
    )
    notice.daemon = True
    notice.start()
    try:
        return env.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError("The standard input is not UTF-8 text.") from error
    finally:
        notice.cancel()


def _parse(text: str, source: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise UsageError(f"The body from {source} is nested too deeply.") from error
    except ValueError as error:
        raise UsageError(
            f"The body from {source} is not JSON: {error}.", hint="A plain text needs quotes: --body '\"text\"'."
        ) from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")
