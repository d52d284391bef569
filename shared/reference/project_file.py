"""``docs/reference/project-file.md`` and ``containerpub.schema.json``, from the model of a function's settings."""

from __future__ import annotations

import json
from typing import Any

from shared.functions import NAME_PATTERN, FunctionSettings
from shared.reference.bounds import plain
from shared.settings import Settings

_HEAD = """\
# The project file

A project folder says in `containerpub.toml` what its function needs, in flat keys. A `function.json` with the same
keys is read where there is none. The `settings` that a deploy sends beside the archive go before the file. A key that
is not in this table is refused by its name.

Editors complete and check the keys by [containerpub.schema.json](containerpub.schema.json), a JSON schema: put a copy
of it beside the project file, and begin that with `#:schema ./containerpub.schema.json`, as Taplo and Even Better TOML
read it.

A default in capitals is the operator's setting of that name ([settings](settings.md)), with its own default in
brackets; so is the most that a function may ask for.

| key | default | values | meaning |
|---|---|---|---|
"""
_BY_OPERATOR = {
    "timeout_s": ("function_timeout_seconds", "function_max_timeout_seconds"),
    "memory_mb": ("function_max_memory_mb", "function_memory_limit_mb"),
    "cpus": ("function_cpus", None),
}
_OF_THE_DEPLOY = {"runtime": "python"}
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "to", "maxLength": "at most, in characters,"}
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "array": "list", "boolean": "true or false"}
_NAME = {
    "type": "string",
    "pattern": NAME_PATTERN,
    "description": "Name of the function, unless the deploy gives one.",
}


def project_file_schema() -> dict[str, Any]:
    """The JSON schema of a project file (2020-12), whose keys are all optional."""
    made = FunctionSettings.model_json_schema()
    properties = {"name": _NAME} | {key: _property(value) for key, value in made["properties"].items()}
    for key, default in _OF_THE_DEPLOY.items():
        properties[key]["default"] = default
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "containerpub.toml",
        "description": "The project file of a function on ContainerPub.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def project_file_schema_text() -> str:
    return json.dumps(project_file_schema(), indent=2, ensure_ascii=False) + "\n"


def project_file_page() -> str:
    rows = (
        f"| `{key}` | {_default(key, value)} | {_values(key, value)} | {value['description']} |\n"
        for key, value in project_file_schema()["properties"].items()
    )
    return _HEAD + "".join(rows)


def _property(value: dict[str, Any]) -> dict[str, Any]:
    """Without what a file cannot say: TOML has no null, and a key that is left out has its default."""
    given: dict[str, Any] = next((one for one in value.get("anyOf", ()) if one.get("type") != "null"), {})
    kept = {name: part for name, part in value.items() if name not in ("anyOf", "title")}
    if kept.get("default", ...) is None:
        del kept["default"]
    return given | kept


def _default(key: str, value: dict[str, Any]) -> str:
    if key in _BY_OPERATOR:
        setting, _ = _BY_OPERATOR[key]
        return f"`{setting.upper()}` (`{plain(Settings.model_fields[setting].default)}`)"
    if "default" not in value:
        return ""
    return f"`{json.dumps(value['default'])}`"


def _values(key: str, value: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    if value["type"] == "array":
        return "list of " + ", ".join(f"`{json.dumps(one)}`" for one in value["items"]["enum"])
    words = [_KINDS[value["type"]]]
    words += [f"{word} {plain(value[bound])}" for bound, word in _BOUNDS.items() if bound in value]
    if key in _BY_OPERATOR and (most := _BY_OPERATOR[key][1]) is not None:
        words.append(f"to `{most.upper()}` (`{plain(Settings.model_fields[most].default)}`)")
    return " ".join(words)
