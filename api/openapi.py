"""The OpenAPI document, from the operations and the models that validate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.models import Problem
from api.operation import Operation


def document(operations: Sequence[Operation], *, version: str, server: str) -> bytes:
    """OpenAPI 3.1 as JSON text."""
    models: set[type[BaseModel]] = {Problem}
    for operation in operations:
        models.update(model for model in operation.responses.values() if isinstance(model, type))
        if operation.body is not None:
            models.add(operation.body)
    ordered = sorted(models, key=lambda model: model.__name__)
    references, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    refs = {model: references[model, "validation"] for model in ordered}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, refs)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "ContainerPub", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
            "servers": [{"url": server or "/"}],
            "paths": paths,
            "components": {
                "schemas": definitions.get("$defs", {}),
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            },
        }
    )


HEADERS: dict[str, tuple[str, str]] = {
    "X-Request-ID": ("string", "The request's id, as the log has it."),
    "Location": ("string", "Where the job is read."),
    "Preference-Applied": ("string", "The preference that was honoured (RFC 7240)."),
    "Idempotent-Replayed": ("string", "`true` where the job is that of an earlier call."),
    "Retry-After": ("integer", "Seconds after which a retry makes sense."),
    "RateLimit-Limit": ("integer", "Calls that may come at once, where a rate is set."),
    "RateLimit-Remaining": ("integer", "How many of them are left."),
    "RateLimit-Reset": ("integer", "Seconds until it is as if nothing had been called."),
}


def _headers(*names: str) -> dict[str, Any]:
    return {
        name: {"description": HEADERS[name][1], "schema": {"type": HEADERS[name][0]}}
        for name in ("X-Request-ID", *names)
    }


def _operation(operation: Operation, refs: dict[type[BaseModel], Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": refs[Problem]}}
    responses: dict[str, Any] = {
        "default": {
            "description": "A problem",
            "headers": _headers("Retry-After", *operation.headers.get("default", ())),
            "content": problem,
        }
    }
    for status, model in operation.responses.items():
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(*operation.headers.get(status, ())),
        }
        if isinstance(model, str):
            responses[str(status)]["content"] = {model: {"schema": {"type": "string"}}}
        elif model is not None:
            responses[str(status)]["content"] = {"application/json": {"schema": refs[model]}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{([a-z_]+)}", operation.path)
    ]
    parameters += [
        {"name": item.name, "in": item.where, "description": item.description, "schema": dict(item.schema)}
        for item in operation.parameters
    ]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.handler.__name__,
        "tags": [operation.tag],
        "responses": responses,
        "security": [] if operation.scope is None else [{"bearer": [str(operation.scope)]}],
    }
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[operation.body]}}}
    if operation.form is not None:
        properties = {
            name: {"type": "string", "description": text} | ({"format": "binary"} if name == "archive" else {})
            for name, text in operation.form.items()
        }
        schema = {"type": "object", "required": ["archive"], "properties": properties}
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return described
