"""What a ``requirements.txt`` may say, and the files of the project that it names.

A line reaches the package manager only in a form that this module has taken apart and written anew, so that an
encoding cookie, a line continuation or an environment variable cannot mean one thing here and another there. Which
index is in use only the base image knows: addresses of indexes are handed to its install script, which refuses others.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from worker.build.encoding import read_text
from worker.build.plan import BuildRejected

MAX_BYTES = 256 * 1024
MAX_LINES = 2_000
MAX_FILES = 50

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
_FORMATS = re.compile(rf":all:|:none:|{_NAME}(?:,{_NAME})*", re.ASCII)
_OPTION = re.compile(
    r"(--[a-z-]+|-[irc])(?:=|\s+|(?<=^-[irc]))(\"[^\"\s]*\"|'[^'\s]*'|[^\s\"']\S*)(?:\s+|\Z)", re.ASCII
)
_FLAG = re.compile(r"(--[a-z-]+)(?:\s+|\Z)", re.ASCII)
_LONG = {"-i": "--index-url", "--pypi-url": "--index-url", "-r": "--requirement", "-c": "--constraint"}
_INDEX = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?", re.ASCII)
_ARCHIVE = (".whl", ".zip", ".tar", ".tgz", ".tar.gz", ".tbz", ".tar.bz2", ".txz", ".tlz", ".tar.xz", ".tar.lzma")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Accepted requirements: one a line, ASCII, in the order they were given. Empty when nothing is asked for."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()  # ``file:line address`` of every index that is named
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> Mapping[str, str]:
        constrained = ("-c constraints.txt",) if self.constraints else ()
        texts = {"requirements.txt": _text((*constrained, *self.lines))}
        if self.constraints:
            texts["constraints.txt"] = _text(self.constraints)
        if self.indexes:
            texts["indexes.txt"] = _text(self.indexes)
        return texts

    def __bool__(self) -> bool:
        return any(not line.startswith("-") for line in self.lines)


def _text(lines: tuple[str, ...]) -> str:
    return "".join(f"{line}\n" for line in lines)


def parse_requirements(
    content: bytes, name: str = "requirements.txt", files: Mapping[str, bytes] = MappingProxyType({})
) -> Requirements:
    """Read ``content`` by our own, narrower grammar.

    :param files: those of the project that it names by ``-r`` and ``-c``, by their paths.
    :raises BuildRejected: ``build_failed``, naming the line, when one refers to anything but a package of the index.
    """
    reading = _Reading(files)
    reading.read(content, name, constrains=False)
    return reading.result()


def named_files(content: bytes, name: str) -> Iterator[str]:
    """The paths of the files that ``content`` names by ``-r`` and ``-c``, as far as it can be read."""
    try:
        lines = _logical_lines(read_text(content[:MAX_BYTES], comment="#"))
        for _, line in lines:
            for option, value in _options(line) if line.startswith("-") else ():
                if option in ("--requirement", "--constraint"):
                    yield _inside(value, name)
    except (BuildRejected, UnicodeDecodeError, ValueError):
        return  # told when it is parsed


class _Reading:
    """What all files say together."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._seen: set[tuple[str, bool]] = set()
        self._lines: dict[str, None] = {}
        self._constraints: dict[str, None] = {}
        self._indexes: dict[str, None] = {}

    def result(self) -> Requirements:
        return Requirements(
            lines=tuple(self._lines), constraints=tuple(self._constraints), indexes=tuple(self._indexes)
        )

    def read(self, content: bytes, name: str, *, constrains: bool) -> None:
        if (name, constrains) in self._seen:
            return
        self._seen.add((name, constrains))
        if len(self._seen) > MAX_FILES:
            raise _rejected(f"{name}: more than {MAX_FILES} files of requirements.")
        if len(content) > MAX_BYTES:
            raise _rejected(f"{name} is larger than {MAX_BYTES // 1024} KiB.")
        try:
            text = read_text(content, comment="#")
        except UnicodeDecodeError as error:
            at = content[: error.start].count(b"\n") + 1
            raise _rejected(
                f"{name}:{at} is not UTF-8 text (it has the byte 0x{content[error.start]:02X}): save it as UTF-8."
            ) from error
        lines = _logical_lines(text)
        if len(lines) + len(self._lines) + len(self._constraints) > MAX_LINES:
            raise _rejected(f"{name} has more than {MAX_LINES} lines.")
        for number, line in lines:
            where = f"{name}:{number}"
            if line.startswith("-"):
                self._take_options(line, where, name, constrains=constrains)
            else:
                self.take(line, where, constrains=constrains)

    def take(self, line: str, where: str, *, constrains: bool = False) -> None:
        """One requirement, or one constraint."""
        accepted = _accept(line, where)
        if constrains and "[" in accepted.partition(";")[0]:
            raise _rejected(f"{where}: {_shown(line)} has extras, which a constraint cannot have: leave them out.")
        (self._constraints if constrains else self._lines)[accepted] = None

    def _take_options(self, line: str, where: str, name: str, *, constrains: bool) -> None:
        refused = _rejected(
            f"{where}: the option {_shown(line)} is not allowed; only packages of the index in use can be installed."
        )
        if "${" in line:
            raise _rejected(f"{where}: {_shown(line)} uses an environment variable; write the value itself.")
        try:
            options = list(_options(line))
        except ValueError:
            raise refused from None
        for option, value in options:
            if option in _FLAGS and not value:
                self._lines[option] = None
            elif option in ("--only-binary", "--no-binary") and _FORMATS.fullmatch(value):
                self._lines[f"{option}={value}"] = None
            elif option in ("--index-url", "--extra-index-url") and _INDEX.fullmatch(value):
                self._indexes[f"{where} {value}"] = None
            elif option in ("--requirement", "--constraint"):
                try:
                    path = _inside(value, name)
                except ValueError:
                    raise _rejected(f"{where}: {_shown(value)} is no file of the project.") from None
                if path not in self._files:
                    raise _rejected(f"{where}: there is no file {_shown(path)} in the project.")
                self.read(self._files[path], path, constrains=constrains or option == "--constraint")
            else:
                raise refused


def _options(line: str) -> Iterator[tuple[str, str]]:
    """The options of a line, by their long names, each with its value. Raises ValueError for what is none."""
    at = 0
    while at < len(line):
        flag, option = _FLAG.match(line, at), _OPTION.match(line[at:])
        if flag is not None and flag[1] in _FLAGS:
            yield flag[1], ""
            at = flag.end()
        elif option is not None:
            yield _LONG.get(option[1], option[1]), option[2].strip("\"'")
            at += option.end()
        else:
            raise ValueError(line)


def _inside(value: str, name: str) -> str:
    """The path in the project that ``value`` means in the file ``name``. Raises ValueError if it leads elsewhere."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), value.replace("\\", "/")))
    if not value or path.startswith(("/", "~")) or path.split("/")[0] == ".." or ":" in path or not path.isprintable():
        raise ValueError(value)
    return path


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
    if "${" in line:
        raise _rejected(f"{where}: {_shown(line)} uses an environment variable; write the value itself.")
    hashes = _HASHES.search(line)
    body = line[: hashes.start()] if hashes else line
    match = _REQUIREMENT.fullmatch(body.strip())
    if match is None or match["name"].lower().endswith(_ARCHIVE):
        raise _rejected(
            f"{where}: {_shown(line)} is not a package of the index; "
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


def requirements_of(listed: Mapping[str, str], notes: tuple[str, ...]) -> Requirements:
    """Requirements that another file than a list of them declares: each by where it stands.

    :raises BuildRejected: as :func:`parse_requirements`.
    """
    reading = _Reading({})
    for where, line in listed.items():
        reading.take(line, where)
    return Requirements(lines=reading.result().lines, notes=notes)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 100 else text[:100] + "…")


def _rejected(message: str) -> BuildRejected:
    return BuildRejected("build_failed", message)
