"""Deploy: turns an upload into an artifact, a version and a job, or refuses it and stores nothing."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from aiohttp import BodyPartReader, web

from api import models, params
from api.call import UPLOAD, Call
from api.keys import BLOBS, FUNCTIONS, SCRATCH, SETTINGS, STORE, SUBMITTER, VERSIONS
from api.operation import PREFER, Operation
from api.routes.jobs import await_end
from shared import archive
from shared.artifacts import artifact_key
from shared.errors import BadRequest, Invalid, TooLarge, Unavailable
from shared.functions import NAME_PATTERN, handler_folder, project_settings
from shared.in_thread import finished_in_thread
from shared.jobs import PLATFORM_REASONS, JobStatus
from shared.runtimes import DOCKERFILE, known_runtimes
from shared.scopes import Scope
from shared.settings import Settings

_CHUNK = 256 * 1024
_MAX_TEXT = 64 * 1024
_FIELDS = ("name", "archive", "settings")


@dataclass(slots=True, kw_only=True)
class _Upload:
    name: str | None = None
    settings: bytes | None = None
    archive: Path | None = None


async def deploy(request: web.Request, call: Call) -> web.Response:
    """Check and store the upload, commit a version and its job, answer 202.

    Nothing is unpacked here: the archive is read entry by entry off the event loop and written anew.
    """
    app = request.app
    caller = call.caller
    settings = app[SETTINGS]
    _, wait_s = params.preferences(request, max_wait=settings.max_wait_seconds)
    async with app[SCRATCH].folder() as folder:
        upload = await _receive(request, folder, settings)
        if upload.archive is None:
            raise BadRequest("The upload has no field archive.", code="missing_field", field="archive")
        canonical_file = folder / "canonical.tar.gz"
        canonical = await finished_in_thread(
            partial(
                archive.rewrite,
                upload.archive,
                canonical_file,
                _limits(settings),
                own_folder=handler_folder(upload.settings),
            )
        )
        function_settings, name = project_settings(
            settings,
            file_name=canonical.project_file_name,
            file=canonical.project_file,
            overrides=upload.settings,
        )
        name = upload.name or name
        if name is None:
            raise Invalid("The function has no name: send name or put it into containerpub.toml.", field="name")
        if not re.fullmatch(NAME_PATTERN, name):
            raise Invalid(
                "A function name has 1 to 63 characters out of a-z, 0-9, - and _, starting and ending with a letter "
                "or digit.",
                code="invalid_name",
                field="name",
            )
        await asyncio.to_thread(_usable_runtime, function_settings.runtime, settings)
        await app[BLOBS].claim_artifact(canonical.sha256, canonical.size_bytes)
        await app[STORE].put(artifact_key(canonical.sha256), canonical_file)

    accepted = await app[FUNCTIONS].deploy(
        user=caller.user.id,
        name=name,
        artifact_sha256=canonical.sha256,
        artifact_bytes=canonical.size_bytes,
        settings=function_settings,
        notes="".join(f"{note}\n" for note in canonical.notes),
    )
    job_id = None if accepted.job is None else accepted.job.id
    document = {
        "job_id": job_id,
        "function_id": accepted.function_id,
        "version": accepted.version,
        "status": accepted.status,
    }
    if accepted.job is None or job_id is None:
        return params.answer(document)
    app[SUBMITTER].hand_over([accepted.job])
    if wait_s:
        job = await await_end(app, caller.user.id, job_id, wait_s)
        if job is not None and job.final:
            if job.status is not JobStatus.SUCCEEDED:
                version = await app[VERSIONS].get(accepted.function_id, accepted.version)
                reason = job.reason or "cancelled"
                sentence = (version.error if version else None) or f"The deploy ended as {job.status}."
                extra: dict[str, object] = {"job_id": str(job_id), "version": accepted.version}
                if reason in PLATFORM_REASONS:
                    raise Unavailable(sentence, code=reason, retry_after_s=1, extra=extra)
                raise Invalid(sentence, code=reason, extra=extra)
            return params.answer(document | {"status": "active"}, status=201)
    return params.answer(document, status=202, headers={"Location": f"/api/jobs/{job_id}"})


async def _receive(request: web.Request, folder: Path, settings: Settings) -> _Upload:
    """Write the archive to ``folder`` and read the other fields, each bounded as it arrives."""
    if not request.content_type.startswith("multipart/"):
        raise BadRequest("Send the deploy as multipart/form-data with name and archive.", code="not_multipart")
    upload = _Upload()
    texts: dict[str, bytes] = {}
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            # Any part that is not one of the fields is refused, which bounds the number of parts, too.
            if not isinstance(part, BodyPartReader) or part.name not in _FIELDS:
                raise BadRequest(f"A deploy has the fields {', '.join(_FIELDS)} and no others.", code="unknown_field")
            if part.name == "archive":
                if upload.archive is not None:
                    raise BadRequest("archive was sent twice.", code="duplicate_field", field="archive")
                upload.archive = folder / "upload"
                await _save(part, upload.archive, settings)
                continue
            if part.name in texts:
                raise BadRequest(f"{part.name} was sent twice.", code="duplicate_field", field=part.name)
            texts[part.name] = await _read_text(part)
    except ValueError as error:
        raise BadRequest(f"The multipart body is broken: {error}", code="broken_multipart") from error
    upload.settings = texts.get("settings") or None
    upload.name = texts.get("name", b"").decode("utf-8", "replace").strip() or None
    return upload


async def _save(part: BodyPartReader, target: Path, settings: Settings) -> None:
    size = 0
    file = await finished_in_thread(lambda: target.open("wb"), IO.close)
    try:
        while chunk := await part.read_chunk(_CHUNK):
            size += len(chunk)
            if size > settings.max_upload_bytes:
                raise _too_large(settings)
            await asyncio.to_thread(file.write, chunk)
    finally:
        await asyncio.to_thread(file.close)


async def _read_text(part: BodyPartReader) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(8192):
        data += chunk
        if len(data) > _MAX_TEXT:
            raise TooLarge(f"The field {part.name} may have at most {_MAX_TEXT} bytes.", field=part.name)
    return bytes(data)


def _too_large(settings: Settings) -> TooLarge:
    return TooLarge(
        f"The upload may have at most {settings.max_upload_bytes} bytes.", code="upload_too_large", field="archive"
    )


def _limits(settings: Settings) -> archive.ArchiveLimits:
    return archive.ArchiveLimits(
        max_upload_bytes=settings.max_upload_bytes,
        max_unpacked_bytes=settings.max_unpacked_bytes,
        max_entries=settings.max_archive_entries,
        max_path_chars=settings.max_path_chars,
        max_path_depth=settings.max_path_depth,
    )


def _usable_runtime(name: str, settings: Settings) -> None:
    known = known_runtimes()
    if name not in known:
        raise Invalid(
            f"There is no runtime {name}; there are: {', '.join(known)}.", code="unknown_runtime", field="runtime"
        )
    if name == DOCKERFILE and not settings.dockerfile_runtime:
        raise Invalid(
            "The runtime dockerfile is off here; an operator turns it on with DOCKERFILE_RUNTIME=true.",
            code="runtime_off",
            field="runtime",
        )


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/functions/deploy",
        handler=deploy,
        scope=Scope.DEPLOY,
        summary="Upload a function; a job builds it",
        limit=UPLOAD,
        parameters=(PREFER,),
        form={
            "archive": "The function as tar.gz, tar or zip.",
            "name": "The function's name; the project file's if omitted.",
            "settings": "JSON object that overrides the project file.",
        },
        responses={200: models.DeployView, 201: models.DeployView, 202: models.DeployView},
        headers={202: ("Location",)},
    ),
)
