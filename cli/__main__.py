"""``containerpub`` and ``python -m cli``: the process around :func:`cli.app.main`."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command in this process and exit with its status."""
    try:
        from getpass import getpass
        from pathlib import Path

        from cli.app import main
        from cli.environment import Environment

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its escape
                stream.reconfigure(errors="backslashreplace")
        status = int(
            main(
                sys.argv[1:],
                Environment(
                    stdin=sys.stdin,
                    stdout=sys.stdout,
                    stderr=sys.stderr,
                    variables=dict(os.environ),
                    cwd=Path.cwd(),
                    read_password=lambda prompt: getpass(prompt, stream=sys.stderr),
                ),
            )
        )
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    if status == 141:
        # The interpreter flushes stdout once more at its end; what is left goes nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


if __name__ == "__main__":
    run()
