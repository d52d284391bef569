"""Shows the progress of a slow command on stderr: its phase and its lines."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.output import Output
from cli.terminal import escape_line

if TYPE_CHECKING:
    from rich.status import Status


class Progress:
    """A spinner on a terminal, plain lines elsewhere, nothing with ``--json``."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._status: Status | None = None
        self._phase = ""

    def __enter__(self) -> Self:
        env = self._output.env
        if not self._output.as_json and env.stderr.isatty():
            from rich.console import Console

            console = Console(file=env.stderr, highlight=False, markup=False, emoji=False, _environ=env.variables)
            self._status = console.status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def phase(self, text: str) -> None:
        if text == self._phase:
            return
        self._phase = text
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(escape_line(text)))
        elif not self._output.as_json:
            self._output.note(text)

    def line(self, text: str) -> None:
        """One line of output, above the spinner."""
        if self._status is not None:
            from rich.text import Text

            self._status.console.print(Text(f"  {escape_line(text)}", style="dim"), soft_wrap=True)
        elif not self._output.as_json:
            self._output.note(f"  {escape_line(text)}")
