"""``docs/reference/settings.md``, from the settings themselves."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from shared.reference.bounds import bounds
from shared.settings import Settings

_HEAD = """\
# Settings

Every process reads its settings once, at its start, from the environment; an empty variable counts as none. Any of them
may be given as `NAME_FILE` instead, the path of a file that holds the value. What neither says is taken from a file
`.env` in the working folder. Mistakes are reported all at once, and a process that has some ends with status 2.

A file that holds a secret, `.env` too, belongs to the user of the process and is closed to others: `chmod 600`. Only
where several users must read one, as containers do under `deploy/make-secrets.sh`, is the folder closed instead.

`MB` is 10^6 bytes where a setting counts bytes. Lists are separated by commas.

| setting | default | values | meaning |
|---|---|---|---|
"""


def settings_page() -> str:
    """``docs/reference/settings.md``; a test compares the two."""
    rows = (
        f"| `{name.upper()}` | {_default(field.default)} | {_values(field)} | {field.description} |\n"
        for name, field in Settings.model_fields.items()
    )
    return _HEAD + "".join(rows)


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{value}`" if str(value) else ""


def _values(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "`true`, `false`"
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if field.annotation is bool:
        choices = ["true", "false"]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    kind = {int: "whole number", float: "number"}.get(field.annotation)  # type: ignore[arg-type]
    return " ".join([*([kind] if kind else []), *bounds(field)])
