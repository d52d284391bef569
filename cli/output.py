"""What the command prints: results on stdout, everything else on stderr.

With ``--json`` stdout carries exactly one document, also when the command fails. Whatever else is printed passes
through :mod:`cli.terminal`, and rich sees it only as plain ``Text``, so that no markup in it takes effect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from cli.environment import Environment
from cli.errors import CliError, OutputClosed
from cli.terminal import escape, escape_json, escape_line

_TABLE_WIDTH = 10_000  # whole cells, never shortened or folded ones: an id has to be copied in one piece


class Output:
    def __init__(self, env: Environment, *, as_json: bool) -> None:
        self.env = env
        self.as_json = as_json

    def document(self, value: object) -> None:
        """The one machine-readable document: JSON in ASCII, which no terminal obeys either."""
        text = json.dumps(value, ensure_ascii=True, indent=2 if self.env.stdout.isatty() else None)
        self._write(text.replace("\x7f", "\\u007f") + "\n")

    def value(self, value: object) -> None:
        """A function's result for a person: still JSON, with readable letters."""
        self._write(escape_json(json.dumps(value, ensure_ascii=False, indent=2)) + "\n")

    def line(self, text: str) -> None:
        self._write(escape_line(text) + "\n")

    def note(self, text: str) -> None:
        """Something beside the result, of one or more lines, on stderr."""
        self.env.stderr.write(escape(text) + "\n")
        self.env.stderr.flush()

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """One thing's members, a line each; those without a value are left out."""
        shown = [(name, shown_value(value)) for name, value in pairs if value is not None]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"{name:<{width}}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(
            file=self.env.stdout,
            width=_TABLE_WIDTH,
            color_system=None,
            highlight=False,
            markup=False,
            emoji=False,
            _environ=self.env.variables,
        )
        table = Table(box=None, pad_edge=False, show_edge=False)
        for column in columns:
            table.add_column(Text(column))
        for row in rows:
            table.add_row(*(Text(escape_line(shown_value(cell))) for cell in row))
        with console.capture() as capture:
            console.print(table)
        self._write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))

    def error(self, error: CliError) -> None:
        """Say why the command ends. With ``--json`` the document goes to stdout, the sentence still to stderr."""
        if self.as_json:
            self.document({"error": error.document()})
        members = error.document()
        field = members.get("field")
        at = f"{field}: " if isinstance(field, str) and not error.message.startswith(f"{field}: ") else ""
        self.note(f"Error: {at}{error.message}")
        for name in ("job_id", "request_id"):
            if isinstance(members.get(name), str):
                self.note(f"  {name.replace('_', ' ')}: {members[name]}")
        if error.hint:
            self.note(error.hint)

    def _write(self, text: str) -> None:
        try:
            self.env.stdout.write(text)
            self.env.stdout.flush()
        except BrokenPipeError as error:
            raise OutputClosed("Nobody reads the output any more.") from error


def shown_value(value: object) -> str:
    """A member of a document as a person reads it; ``-`` when there is none."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
