"""``list``, ``stop``, ``start`` and ``delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands import FunctionName, JsonFlag, in_session, output_of
from cli.errors import ApiError, ExitStatus, UsageError, WaitRanOut

if TYPE_CHECKING:
    from cli.session import Session

DELETE_WAIT_S = 60.0


def list_functions(ctx: typer.Context, as_json: JsonFlag = False) -> ExitStatus:
    """List your functions."""
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.session import pages

        found = await pages(session, "/api/functions", {}, limit=None)
        if output.as_json:
            output.document({"items": found})
        elif not found:
            output.note("There is no function yet. Make one with `containerpub init`, then `containerpub deploy`.")
        else:
            columns = ("name", "status", "runtime", "live_version", "updated_at", "id")
            output.table([name.upper() for name in columns], [[each.get(name) for name in columns] for each in found])
        return ExitStatus.OK

    return in_session(output, action)


def stop(ctx: typer.Context, name: FunctionName, as_json: JsonFlag = False) -> ExitStatus:
    """Stop a function: new invokes are refused, jobs that wait go on waiting."""
    return _set_status(ctx, name, as_json, "stop", "Stopped")


def start(ctx: typer.Context, name: FunctionName, as_json: JsonFlag = False) -> ExitStatus:
    """Start a stopped function again."""
    return _set_status(ctx, name, as_json, "start", "Started")


def _set_status(ctx: typer.Context, name: str, as_json: bool, verb: str, done: str) -> ExitStatus:
    output = output_of(ctx, as_json)

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.session import function_path

        answer = await session.call(Request(method="POST", path=f"{function_path(name)}/{verb}"))
        if output.as_json:
            output.document(answer.document)
        else:
            output.line(f"{done} {name}.")
        return ExitStatus.OK

    return in_session(output, action)


def delete(
    ctx: typer.Context,
    name: FunctionName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Delete a function with its versions and logs."""
    output = output_of(ctx, as_json)
    if not yes:
        if not output.env.interactive:
            raise UsageError("There is no terminal to confirm at.", hint="Give --yes.")
        try:
            answer = output.env.ask(f"Delete {name} for good? [y/N] ")
        except EOFError:
            answer = ""
        if answer.lower() not in ("y", "yes"):
            raise UsageError("Nothing was deleted.")

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request
        from cli.commands.jobs import show
        from cli.session import function_path
        from cli.waiting import is_final, wait_for_job

        job_id = str((await session.call(Request(method="DELETE", path=function_path(name)))).document.get("job_id"))
        try:
            job = await wait_for_job(session, job_id, wait_s=DELETE_WAIT_S)
        except ApiError as error:
            if error.http_status != 404:
                raise
            job = {"id": job_id, "status": "succeeded"}  # the job went with its function
        if not is_final(job):
            raise WaitRanOut(
                f"{name} is still being deleted after {DELETE_WAIT_S:g} s.", hint=f"See `containerpub job {job_id}`."
            )
        if job.get("status") != "succeeded":
            show(output, job)
            return ExitStatus.FAILED
        if output.as_json:
            output.document({"name": name, "deleted": True, "job_id": job_id})
        else:
            output.line(f"Deleted {name}.")
        return ExitStatus.OK

    return in_session(output, action)
