"""Versions of a function: list and read."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from api import models, params
from api.call import Call
from api.keys import SETTINGS, VERSIONS
from api.operation import CURSOR, LIMIT, Operation
from api.session import function_of
from shared.errors import NotFound
from shared.functions import Version
from shared.scopes import Scope


def version_view(version: Version) -> dict[str, Any]:
    return {
        "id": version.id,
        "number": version.number,
        "status": version.status,
        "reason": version.reason,
        "error": version.error,
        "artifact_sha256": version.artifact_sha256,
        "artifact_bytes": version.artifact_bytes,
        "base": version.layers.base if version.layers else None,
        "layers": [
            {"kind": layer.kind, "digest": layer.digest, "bytes": layer.size_bytes}
            for layer in (version.layers.layers if version.layers else ())
        ],
        "settings": version.settings.model_dump(),
        "build_log": version.build_log,
        "created_at": version.created_at,
        "activated_at": version.activated_at,
    }


async def list_versions(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    settings = request.app[SETTINGS]
    function = await function_of(request, caller)
    limit = params.page_limit(request, default=settings.default_page, most=settings.max_page)
    before = params.decode_cursor(request.query.get("cursor"))
    if before is None:
        before = 2**31 - 1
    if not isinstance(before, int) or not 0 < before < 2**31:
        raise params.bad_cursor()
    found = await request.app[VERSIONS].list(function.id, before=before, limit=limit + 1)
    following = params.encode_cursor(found[limit - 1].number) if len(found) > limit else None
    return params.answer({"items": [version_view(item) for item in found[:limit]], "next": following})


async def read_version(request: web.Request, call: Call) -> web.Response:
    caller = call.caller
    function = await function_of(request, caller)
    text = request.match_info["number"]
    version = None
    if text.isascii() and text.isdigit() and len(text) < 10:
        version = await request.app[VERSIONS].get(function.id, int(text))
    if version is None:
        raise NotFound(f"The function {function.name} has no version {text[:20]!r}.", code="version_not_found")
    return params.answer(version_view(version))


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/functions/{function}/versions",
        handler=list_versions,
        scope=Scope.READ,
        summary="List a function's versions, newest first, without their build logs",
        parameters=(LIMIT, CURSOR),
        responses={200: models.VersionPage},
    ),
    Operation(
        method="GET",
        path="/api/functions/{function}/versions/{number}",
        handler=read_version,
        scope=Scope.READ,
        summary="Read a version with its build log",
        responses={200: models.VersionView},
    ),
)
