"""Variables of a Dockerfile replaced by their values, so that the builder has none to replace.

Left to the builder, ten lines that each repeat the one before ten times would fill the engine's memory.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace

from worker.build.dockerfile.instructions import Copy, Dockerfile, Run, Step, Variables, Word, Workdir, rejected
from worker.build.dockerfile.words import expand

MAX_VALUES_CHARS = 64 * 1024
_PATH = re.compile(r"[^\x00-\x1f\x7f$\\\"'`]{1,1024}")


def resolve(dockerfile: Dockerfile, environments: Mapping[str, Mapping[str, str]]) -> Dockerfile:
    """``dockerfile`` without references.

    :param environments: of the base images, by reference.
    :raises BuildRejected: a value is too long, or a path is none.
    """
    stages = []
    known: list[dict[str, str]] = []
    values_room, paths_room = _Room("the values of variables"), _Room("the paths")
    for stage in dockerfile.stages:
        env = dict(known[stage.stage] if stage.stage is not None else environments[stage.image or ""])
        arguments: dict[str, str] = {}
        steps: list[Step] = []
        for step in stage.steps:
            # A value that ENV set goes before one of ARG, wherever they stand.
            values = {**arguments, **env}
            if isinstance(step, Variables):
                found = tuple((name, values_room.expand(step.line, word, values)) for name, word in step.values)
                if not all(value.isprintable() for _, value in found):
                    raise rejected(step.line, "a value has a character that cannot be printed")
                (env if step.kept else arguments).update(found)
                steps.append(replace(step, values=tuple((name, (value,) if value else ()) for name, value in found)))
            elif isinstance(step, Workdir):
                steps.append(replace(step, path=(_path(step.line, paths_room.expand(step.line, step.path, values)),)))
            elif isinstance(step, Copy):
                sources = tuple((_source(step, paths_room.expand(step.line, word, values)),) for word in step.sources)
                target = _path(step.line, paths_room.expand(step.line, step.target, values))
                steps.append(replace(step, sources=sources, target=(target,)))
            else:
                assert isinstance(step, Run)
                steps.append(step)
        known.append(env)
        stages.append(replace(stage, steps=tuple(steps)))
    return replace(dockerfile, stages=tuple(stages))


class _Room:
    """Bounds what all words of one kind come to, before any of them is put together."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = MAX_VALUES_CHARS

    def expand(self, line: int, word: Word, values: Mapping[str, str]) -> str:
        expanded = expand(word, values, self._left)
        if expanded is None:
            raise rejected(line, f"{self._what} have more than {MAX_VALUES_CHARS} characters")
        self._left -= len(expanded)
        return expanded


def _source(step: Copy, path: str) -> str:
    """A source relative to the artifact, or to the root of a stage."""
    if "://" in path:
        raise rejected(step.line, "COPY takes files of the project, and no addresses")
    return posixpath.normpath(_path(step.line, path).lstrip("/") or ".")


def _path(line: int, path: str) -> str:
    if not _PATH.fullmatch(path) or not path.isprintable() or path != path.strip():
        raise rejected(line, f"{path[:100]!r} cannot be used as a path")
    if ".." in path.split("/"):
        raise rejected(line, f"{path[:100]!r} leads out of where it begins")
    return path
