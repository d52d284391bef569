"""Splits instructions into words, with the few forms of quotes, backslashes and variables that are accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import groupby

from worker.build.dockerfile.instructions import Reference, Word, rejected

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$(?:({_NAME})|\{{({_NAME})\}})")
_HEREDOC = re.compile(r"<<-?\s*[\"']?[A-Za-z_]")
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
_ESCAPED_IN_QUOTES = '\\"$'


def split_words(line: int, text: str) -> tuple[Word, ...]:
    """The words of ``text``.

    :raises BuildRejected: a quote is not closed, or a ``$`` is neither a variable nor escaped.
    """
    words: list[Word] = []
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        word, at = _word(line, text, at)
        words.append(word)
    return tuple(words)


def _word(line: int, text: str, at: int) -> tuple[Word, int]:
    """The word at ``at``, and where it ends."""
    parts: list[str | Reference] = []
    quote = ""
    while at < len(text) and (quote or text[at] not in " \t"):
        character = text[at]
        if character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif character == "\\" and quote != "'":
            at += 1
            if at == len(text):
                raise rejected(line, "a backslash at the end escapes nothing")
            if quote and text[at] not in _ESCAPED_IN_QUOTES:
                parts.append("\\")
            parts.append(text[at])
        elif character == "$" and quote != "'":
            found = _REFERENCE.match(text, at)
            if found is None:
                raise rejected(line, "of variables only $NAME and ${NAME} can be used here; a plain $ is written \\$")
            parts.append(Reference(name=found[1] or found[2]))
            at = found.end()
            continue
        else:
            parts.append(character)
        at += 1
    if quote:
        raise rejected(line, f"the quote {quote} is not closed")
    return joined(parts), at


def joined(parts: Iterable[str | Reference]) -> Word:
    """``parts`` with neighbouring texts put together, so that equal words are equal."""
    word: list[str | Reference] = []
    for kind, run in groupby((part for part in parts if part), type):
        texts = list(run)
        word += ["".join(one for one in texts if isinstance(one, str))] if kind is str else texts
    return tuple(word)


def expand(word: Word, values: Mapping[str, str], most: int) -> str | None:
    """``word`` with the values of its variables; an unknown one is empty.

    ``None`` if that has more than ``most`` characters, which are counted before any are put together.
    """
    parts = [part if isinstance(part, str) else values.get(part.name, "") for part in word]
    return "".join(parts) if sum(map(len, parts)) <= most else None


def json_words(text: str) -> tuple[str, ...] | None:
    """The list of a JSON form; ``None`` if it is none, and a shell will read it."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tuple(found) if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def command_line(line: int, text: str, instruction: str) -> tuple[str, ...]:
    """The argv of ``RUN``, ``CMD`` or ``ENTRYPOINT``.

    :raises BuildRejected: it is empty, a heredoc, or cannot be an argument.
    """
    command = json_words(text)
    if command is None:
        if _HEREDOC.search(text):
            raise rejected(line, f"{instruction} with << (a heredoc) is not supported: write a file and COPY it")
        command = ("/bin/sh", "-c", text) if text else ()
    if not command or not command[0]:
        raise rejected(line, f"{instruction} says nothing to run")
    for argument in command:
        if _IMPOSSIBLE.search(argument):
            raise rejected(line, f"{instruction} has a character that no argument can have")
    return command
