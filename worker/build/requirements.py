"""What a ``requirements.txt`` may say.

A line reaches the package manager only in a form that this module has taken apart and written anew, so that an
encoding cookie, a line continuation or an environment variable cannot mean one thing here and another there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker.build.plan import BuildRejected

MAX_BYTES = 256 * 1024
MAX_LINES = 2_000

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_CLAUSE = r"(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9][A-Za-z0-9._*+!-]*"
_CLAUSES = rf"{_CLAUSE}(?:\s*,\s*{_CLAUSE})*"
_REQUIREMENT = re.compile(
    rf"(?P<name>{_NAME})\s*"
    rf"(?:\[\s*(?P<extras>{_NAME}(?:\s*,\s*{_NAME})*)?\s*\]\s*)?"
    rf"(?P<clauses>{_CLAUSES}|\(\s*{_CLAUSES}\s*\))?\s*"
    r"(?:;\s*(?P<marker>[A-Za-z0-9_.'\"<>=!~() \t,+*-]+))?",
    re.ASCII,
)
_HASH = re.compile(r"--hash[=\s]\s*((?:sha256|sha384|sha512):[0-9a-fA-F]{64,128})\s*", re.ASCII)
_HASHES = re.compile(rf"(?:\s+{_HASH.pattern})+\Z", re.ASCII)
_FLAGS = frozenset({"--require-hashes", "--prefer-binary", "--pre"})
_FORMAT = re.compile(rf"(--only-binary|--no-binary)[=\s]\s*(:all:|:none:|{_NAME}(?:,{_NAME})*)", re.ASCII)
_ARCHIVE = (".whl", ".zip", ".tar", ".tgz", ".tar.gz", ".tbz", ".tar.bz2", ".txz", ".tlz", ".tar.xz", ".tar.lzma")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Accepted requirements: one a line, ASCII, in the order they were given. Empty when nothing is asked for."""

    lines: tuple[str, ...]

    @property
    def files(self) -> Mapping[str, str]:
        return {"requirements.txt": "".join(f"{line}\n" for line in self.lines)}

    def __bool__(self) -> bool:
        return any(not line.startswith("-") for line in self.lines)


def parse_requirements(content: bytes, name: str = "requirements.txt") -> Requirements:
    """Read ``content`` by our own, narrower grammar.

    :raises BuildRejected: ``build_failed``, naming the line, when one refers to anything but a package of the index.
    """
    if len(content) > MAX_BYTES:
        raise _rejected(f"{name} is larger than {MAX_BYTES // 1024} KiB.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _rejected(f"{name} is not UTF-8 text.") from error
    lines = _logical_lines(text)
    if len(lines) > MAX_LINES:
        raise _rejected(f"{name} has more than {MAX_LINES} lines.")
    return Requirements(lines=tuple(_accept(line, f"{name}:{number}") for number, line in lines))


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Continued lines joined, comments and blank lines dropped; each with the number of its first line."""
    joined: list[tuple[int, str]] = []
    pending: list[str] = []
    start = 0
    # only \n and \r\n end a line here; any other control character is refused below
    for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        start = start if pending else number
        whole_comment = raw.lstrip().startswith("#")
        if raw.endswith("\\") and not whole_comment:
            pending.append(raw[:-1])
            continue
        joined.append((start, "".join([*pending, "" if whole_comment else raw])))
        pending = []
    if pending:
        joined.append((start, "".join(pending)))
    stripped = ((number, _COMMENT.sub("", line).strip()) for number, line in joined)
    return [(number, line) for number, line in stripped if line]


def _accept(line: str, where: str) -> str:
    shown = ascii(line if len(line) <= 100 else line[:100] + "…")
    if "${" in line:
        raise _rejected(f"{where}: {shown} uses an environment variable; write the value itself.")
    if line.startswith("-"):
        return _accept_option(line, where, shown)
    hashes = _HASHES.search(line)
    body = line[: hashes.start()] if hashes else line
    match = _REQUIREMENT.fullmatch(body.strip())
    if match is None or match["name"].lower().endswith(_ARCHIVE):
        raise _rejected(
            f"{where}: {shown} is not a package of the index; "
            "only lines such as 'name', 'name==1.2' or 'name[extra]>=1; marker' are allowed."
        )
    accepted = match["name"]
    if match["extras"]:
        accepted += "[" + re.sub(r"\s", "", match["extras"]) + "]"
    accepted += re.sub(r"[\s()]", "", match["clauses"] or "")
    if match["marker"]:
        accepted += " ; " + " ".join(match["marker"].split())
    for digest in _HASH.findall(hashes[0]) if hashes else ():
        accepted += f" --hash={digest.lower()}"
    return accepted


def _accept_option(line: str, where: str, shown: str) -> str:
    if line in _FLAGS:
        return line
    if match := _FORMAT.fullmatch(line):
        return f"{match[1]}={match[2]}"
    raise _rejected(f"{where}: the option {shown} is not allowed; only packages of the index can be installed.")


def _rejected(message: str) -> BuildRejected:
    return BuildRejected("build_failed", message)
