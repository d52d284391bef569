"""Parses a Dockerfile, and refuses instructions and options that it may not have."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from worker.build.dockerfile.instructions import Copy, Dockerfile, Run, Stage, Step, Variables, Word, Workdir, rejected
from worker.build.dockerfile.lines import Line, read_lines
from worker.build.dockerfile.words import command_line, joined, json_words, split_words

MAX_INSTRUCTIONS = 100
_GENERICS = re.compile(r"[ \t]+")
_STAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?")
_IGNORED = ("EXPOSE", "LABEL", "MAINTAINER")
_REFUSED = {
    "ADD": "use COPY, with files of the project",
    "HEALTHCHECK": "the platform watches over its sandboxes itself",
    "ONBUILD": "nobody builds upon the image",
    "SHELL": "commands are run by /bin/sh; name another one in RUN",
    "STOPSIGNAL": "a sandbox is ended by SIGKILL",
    "USER": "a function always runs as nobody",
    "VOLUME": "a function's disk is read-only but for /tmp",
}


@dataclass(slots=True)
class _Open:
    """The stage that is being read."""

    stage: Stage
    name: str | None
    steps: list[Step] = field(default_factory=list)
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None


def parse(raw: bytes, images: Collection[str]) -> Dockerfile:
    """What ``raw`` says.

    :param images: references that ``FROM`` may name, letter by letter.
    :raises BuildRejected: ``analysis_rejected`` as ``Dockerfile:line: what``; nothing else is raised for any bytes.
    """
    return _Parser(images).parse(raw)


class _Parser:
    def __init__(self, images: Collection[str]) -> None:
        self._images = images
        self._stages: list[_Open] = []
        self._ignored: list[str] = []
        self._readers: Mapping[str, Callable[[Line], Step]] = {
            "RUN": _run,
            "COPY": self._copy,
            "ENV": _variables,
            "ARG": _variables,
            "WORKDIR": _workdir,
        }

    def parse(self, raw: bytes) -> Dockerfile:
        for count, line in enumerate(read_lines(raw)):
            if count == MAX_INSTRUCTIONS:
                raise rejected(line.number, f"there are more than {MAX_INSTRUCTIONS} instructions")
            self._read(line)
        if not self._stages:
            raise rejected(1, "there is no FROM")
        last = self._stages[-1]
        return Dockerfile(
            stages=tuple(replace(one.stage, steps=tuple(one.steps)) for one in self._stages),
            entrypoint=last.entrypoint,
            command=last.command,
            ignored=tuple(self._ignored),
        )

    def _read(self, line: Line) -> None:
        keyword = line.keyword
        if keyword in _REFUSED:
            raise rejected(line.number, f"{keyword} is not allowed: {_REFUSED[keyword]}")
        if keyword not in self._readers and keyword not in ("FROM", "CMD", "ENTRYPOINT", *_IGNORED):
            raise rejected(line.number, f"there is no instruction {keyword[:40]}")
        if not line.rest:
            raise rejected(line.number, f"{keyword} says nothing")
        if keyword == "FROM":
            self._from(line)
            return
        if not self._stages:
            raise rejected(line.number, f"{keyword} stands before the first FROM")
        current = self._stages[-1]
        if keyword in _IGNORED:
            self._ignored.append(f"Dockerfile:{line.number}: {keyword} has no effect here")
        elif keyword == "CMD":
            current.command = command_line(line.number, line.rest, keyword)
        elif keyword == "ENTRYPOINT":
            current.entrypoint = command_line(line.number, line.rest, keyword)
        else:
            current.steps.append(self._readers[keyword](line))

    def _from(self, line: Line) -> None:
        words = _GENERICS.split(line.rest)
        if words[0].startswith("--"):
            raise rejected(line.number, f"FROM cannot have the option {words[0][:40]}")
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise rejected(line.number, "FROM is written FROM image, or FROM image AS name")
        base = words[0]
        name = words[2].lower() if len(words) == 3 else None
        if name is not None:
            if not _STAGE_NAME.fullmatch(words[2]):
                raise rejected(line.number, f"{words[2][:40]!r} cannot be the name of a stage")
            if self._stage(name) is not None:
                raise rejected(line.number, f"there is a stage {name} already")
        earlier = self._stage(base.lower())
        if earlier is None and base not in self._images:
            raise rejected(
                line.number,
                f"the image {base[:100]!r} is not allowed; there are: {', '.join(sorted(self._images)) or 'none'}",
            )
        stage = Stage(line=line.number, image=base if earlier is None else None, stage=earlier, steps=())
        opened = _Open(stage, name)
        if earlier is not None:
            opened.entrypoint, opened.command = self._stages[earlier].entrypoint, self._stages[earlier].command
        self._stages.append(opened)

    def _stage(self, name: str) -> int | None:
        """The number of the stage of that name."""
        return next((number for number, one in enumerate(self._stages) if one.name == name), None)

    def _copy(self, line: Line) -> Copy:
        rest, stage, owner = line.rest, None, None
        while rest.startswith("--"):
            option, rest = (*_GENERICS.split(rest, maxsplit=1), "")[:2]
            name, _, value = option.partition("=")
            if name == "--from":
                stage = self._stage(value.lower())
                if stage is None or self._stages[stage] is self._stages[-1]:
                    raise rejected(line.number, f"COPY --from names no earlier stage: {value[:100]!r}")
            elif name == "--chown" and _OWNER.fullmatch(value):
                owner = value
            else:
                hint = "; set modes with RUN chmod" if name == "--chmod" else ""
                raise rejected(line.number, f"COPY cannot have the option {option[:40]}{hint}")
        listed = json_words(rest)
        words = split_words(line.number, rest) if listed is None else tuple(_plain(line.number, one) for one in listed)
        if len(words) < 2:
            raise rejected(line.number, "COPY is written COPY source … target")
        return Copy(line=line.number, sources=words[:-1], target=words[-1], stage=stage, owner=owner)


def _plain(line: int, text: str) -> Word:
    """A word of a JSON list, in which quotes and variables have no place."""
    if any(one in text for one in "$\\\"'"):
        raise rejected(line, "a name in a list cannot have a quote, a backslash or a variable")
    return joined((text,))


def _run(line: Line) -> Run:
    if line.rest.startswith("--"):
        raise rejected(line.number, f"RUN cannot have the option {_GENERICS.split(line.rest)[0][:40]}")
    return Run(line=line.number, command=command_line(line.number, line.rest, "RUN"))


def _variables(line: Line) -> Variables:
    words = split_words(line.number, line.rest)
    if line.keyword == "ARG" and len(words) > 1:
        raise rejected(line.number, "ARG takes one variable; write an ARG for each")
    values: list[tuple[str, Word]] = []
    for word in words:
        head = word[0] if word and isinstance(word[0], str) else ""
        name, equals, first = head.partition("=")
        if not equals and (line.keyword == "ENV" or word != (name,)):
            raise rejected(line.number, f"{line.keyword} is written {line.keyword} NAME=value")
        if not _VARIABLE.fullmatch(name):
            raise rejected(line.number, f"{name[:40]!r} cannot be the name of a variable")
        if name.upper().startswith("LD_"):
            raise rejected(line.number, f"{name} is not allowed: it would say what programs load")
        values.append((name, joined((first, *word[1:]))))
    return Variables(line=line.number, kept=line.keyword == "ENV", values=tuple(values))


def _workdir(line: Line) -> Workdir:
    words = split_words(line.number, line.rest)
    if len(words) != 1:
        raise rejected(line.number, "WORKDIR is written WORKDIR path")
    return Workdir(line=line.number, path=words[0])
