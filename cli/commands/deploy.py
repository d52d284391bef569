"""``deploy``: pack, upload, follow the build."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands import JsonFlag, in_session, output_of
from cli.errors import ExitStatus
from cli.output import Output
from cli.progress import Progress

if TYPE_CHECKING:
    from cli.project import Project
    from cli.session import Session

_PHASES = {"scheduled": "Waiting to be tried again", "queued": "Waiting for a builder", "running": "Building"}


def deploy(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The project's folder.", show_default=False)] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Deploy under this name instead.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the upload is accepted.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be uploaded, and what is left out.")
    ] = False,
    as_json: JsonFlag = False,
) -> ExitStatus:
    """Deploy a project folder as a new version of a function."""
    from cli.project import read_project

    output = output_of(ctx, as_json)
    project = read_project(output.env.cwd / folder, name=name)
    if dry_run:
        return _list_files(output, project)
    following = Following()

    async def action(session: Session) -> ExitStatus:
        from cli.client import Request

        # A login that ran out is found here, rather than by a server that hangs up in the middle of the upload.
        await session.call(Request(method="GET", path="/api/auth/me"))
        with Progress(output) as progress:
            accepted = await upload(session, project, progress)
            following.job_id = accepted.get("job_id")
            if following.job_id is not None and not no_wait:
                job, log = await follow(session, accepted, progress)
        if following.job_id is None:
            return _unchanged(output, project, accepted)
        if no_wait:
            return _accepted(output, project, accepted)
        return _finished(output, project, accepted, job, log)

    try:
        return in_session(output, action)
    except KeyboardInterrupt:
        if following.job_id is not None:
            output.note(f"The deploy goes on. Follow it with `containerpub job {following.job_id} --wait 300`.")
        raise


def _list_files(output: Output, project: Project) -> ExitStatus:
    from cli.archive import listing

    found = listing(project.folder)
    if output.as_json:
        files = [{"name": name, "bytes": path.stat().st_size} for name, path in found.files]
        left_out = [{"name": name, "rule": rule} for name, rule in found.left_out]
        output.document({"name": project.name, "files": files, "left_out": left_out})
        return ExitStatus.OK
    for name, _ in found.files:
        output.line(name)
    for name, rule in found.left_out:
        output.note(f"left out: {name} ({rule})")
    return ExitStatus.OK


class Following:
    """The id of the deploy job once it is known, for the note that follows an interrupt."""

    job_id: str | None = None


async def upload(session: Session, project: Project, progress: Progress) -> dict[str, Any]:
    """Send the project; the server's answer to the deploy."""
    import asyncio

    from cli.archive import listing, pack_listing
    from cli.client import Request, Upload

    progress.phase(f"Packing {project.folder}")
    found = await asyncio.to_thread(listing, project.folder)
    project.check_handler_is_in(found.left_out)
    archive = await asyncio.to_thread(pack_listing, found)
    with archive.content:
        less = f"; {len(found.left_out)} left out, see --dry-run" if found.left_out else ""
        progress.phase(f"Uploading {archive.files} files, {max(1, round(archive.size / 1024))} KB{less}")
        fields = {"name": project.name, "settings": json.dumps(project.settings)}
        sent = Request(method="POST", path="/api/functions/deploy", upload=Upload(fields=fields, archive=archive))
        return (await session.call(sent)).document


async def follow(session: Session, accepted: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], str]:
    """The deploy job once it is final, and the build log; its lines appear as they come."""
    from cli.waiting import is_final, job_state, pause_after

    progress.phase(_PHASES["queued"])
    shown = LogTail(progress)
    while True:
        began = time.monotonic()
        job = await job_state(session, str(accepted["job_id"]), wait_s=1)
        final = is_final(job)
        if not final:
            progress.phase(_PHASES.get(str(job.get("status")), str(job.get("status"))))
        shown.update(await _build_log(session, accepted), final=final)
        if final:
            return job, shown.text
        await pause_after(began)


class LogTail:
    """Shows the lines of a growing text once each; a last line without its end waits for it, or for ``final``."""

    def __init__(self, progress: Progress) -> None:
        self.text = ""
        self._progress = progress
        self._shown = 0

    def update(self, text: str, *, final: bool) -> None:
        if not text.startswith(self.text):
            self._shown = 0  # a further attempt started its log anew
        self.text = text
        end = len(text) if final else text.rfind("\n") + 1
        for line in text[self._shown : end].splitlines():
            self._progress.line(line)
        self._shown = max(self._shown, end)


async def _build_log(session: Session, accepted: dict[str, Any]) -> str:
    from cli.client import Request
    from cli.errors import ApiError
    from cli.session import function_path

    path = function_path(str(accepted["function_id"]), "versions", str(accepted["version"]))
    try:
        log = (await session.call(Request(method="GET", path=path))).document.get("build_log")
    except ApiError as error:
        if error.http_status != 404:
            raise
        return ""  # deleted while it was built: the job's state tells
    return log if isinstance(log, str) else ""


def _unchanged(output: Output, project: Project, accepted: dict[str, Any]) -> ExitStatus:
    if output.as_json:
        output.document({"name": project.name, **accepted})
    else:
        output.line(f"{project.name} is unchanged: version {accepted.get('version')} serves already.")
    return ExitStatus.OK


def _accepted(output: Output, project: Project, accepted: dict[str, Any]) -> ExitStatus:
    if output.as_json:
        output.document({"name": project.name, **accepted})
    else:
        output.line(f"{project.name} version {accepted.get('version')} is being built, job {accepted.get('job_id')}.")
    return ExitStatus.OK


def _finished(output: Output, project: Project, accepted: dict[str, Any], job: dict[str, Any], log: str) -> ExitStatus:
    from cli.commands.jobs import show_error

    succeeded = job.get("status") == "succeeded"
    if output.as_json:
        members = {member: job.get(member) for member in ("status", "reason", "error")}
        output.document({"name": project.name, **accepted, **members, "build_log": log})
    elif succeeded:
        output.line(f"{project.name} version {accepted.get('version')} is live.")
    else:
        output.note(f"Error: version {accepted.get('version')} of {project.name} did not deploy: {job.get('reason')}.")
        if job.get("error") is not None:
            show_error(output, job["error"])
        if accepted.get("version") != 1:
            output.note("The version that was live before stays live.")
    return ExitStatus.OK if succeeded else ExitStatus.FAILED
