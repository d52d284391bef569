"""The parts of the outside world that the command uses whatever its arguments are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Handed to :func:`cli.app.main`, so that a test calls the command like a function.

    ``read_password`` shows its prompt and reads a line that is not echoed; it raises ``EOFError`` when there is none.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    variables: Mapping[str, str]
    cwd: Path
    read_password: Callable[[str], str]

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked: questions appear on stderr, answers come from stdin."""
        return self.stdin.isatty() and self.stderr.isatty()

    def ask(self, prompt: str) -> str:
        """One line from the person, stripped. ``EOFError`` when the input ended."""
        self.stderr.write(prompt)
        self.stderr.flush()
        line = self.stdin.readline()
        if not line:
            raise EOFError
        return line.strip()
