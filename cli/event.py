"""The event of a call, from what the command line says."""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cli.environment import Environment
from cli.errors import UsageError
from shared.textfile import NotText, text_of

_STDIN_NOTICE_S = 3.0
_BYTES_HINT = "Send what is no text with --body-file: the function gets it as body_base64."


def pairs(given: Sequence[str], option: str, separators: str) -> dict[str, str | list[str]]:
    """``NAME<separator>VALUE`` texts as a mapping; a name that is given several times has a list. Raises
    :class:`UsageError`."""
    found: dict[str, str | list[str]] = {}
    for each in given:
        match = re.match(rf"([^{separators}]+)[{separators}]", each)
        if match is None:
            raise UsageError(f"{option} {each!r} has no name and value.", hint=f"Write it as name{separators[0]}value.")
        name, value = match[1].strip(), each[match.end() :]
        value = value.strip() if option == "--header" else value
        known = found.get(name)
        if known is None:
            found[name] = value
        else:
            found[name] = [*known, value] if isinstance(known, list) else [known, value]
    return found


def encoded(env: Environment, given: str) -> str:
    """The bytes of a file as the event's ``body_base64``; ``-`` is stdin."""
    try:
        content = env.stdin.buffer.read() if given == "-" else (env.cwd / Path(given)).read_bytes()
    except OSError as error:
        raise UsageError(f"{given} cannot be read: {error.strerror}.") from error
    return base64.b64encode(content).decode("ascii")


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
        return _parse(text_of(path.read_bytes()), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except NotText as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}", hint=_BYTES_HINT) from error


def _read_stdin(env: Environment) -> str:
    # An open pipe that nobody writes to (as in cron or CI) would otherwise look like a server that hangs.
    notice = threading.Timer(
        _STDIN_NOTICE_S,
        lambda: env.stderr.write("Reading the body from stdin; give --body, or `< /dev/null` for none.\n"),
    )
    notice.daemon = True
    notice.start()
    try:
        return env.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError("The standard input is not UTF-8 text.", hint=_BYTES_HINT) from error
    finally:
        notice.cancel()


def _parse(text: str, source: str) -> object:
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The body from {source} has an escape that is no character: half of a pair like \\ud83d\\ude00.",
            hint="Write the other half too, or leave it out.",
        ) from error
    except RecursionError as error:
        raise UsageError(f"The body from {source} is nested too deeply.") from error
    except ValueError as error:
        raise UsageError(
            f"The body from {source} is not JSON: {error}.", hint="A plain text needs quotes: --body '\"text\"'."
        ) from error


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is more than a number of 64 bits can be")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")
