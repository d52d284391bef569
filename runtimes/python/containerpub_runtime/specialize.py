"""How a generic sandbox, which was started before its function was known, becomes the sandbox of a function."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from containerpub_runtime.channel import PREFIX, READY_NONCE, Channel
from containerpub_runtime.own_modules import folders_of, shadowing

MOST_WANTED = [
    *("asyncio", "base64", "ctypes", "dataclasses", "datetime", "decimal", "encodings.idna", "hashlib", "http.client"),
    *("http.cookiejar", "importlib.metadata", "logging", "mimetypes", "pickle", "platform", "queue", "random", "re"),
    *("secrets", "site", "tempfile", "traceback", "typing", "urllib.request", "uuid"),
]
"""What a generic sandbox imports before it meets its function: what most functions and their packages import, or
serving one needs."""


def be_specialized(channel: Channel, also_wanted: Sequence[str]) -> dict[str, str]:
    """Wait as a generic sandbox until the worker tells the function's environment, and make it this process's.

    :param also_wanted: what is imported beside ``MOST_WANTED`` in the meantime.
    :return: what the worker told the runtime itself, by names without ``PREFIX``.
    """
    for name in (*MOST_WANTED, *also_wanted):
        __import__(name)
    while True:
        told = channel.receive()
        if told is None:
            os._exit(0)
        if told["kind"] == "look":
            seen = {path: _read(path) for path in told["paths"]}
            channel.send({"nonce": READY_NONCE, "kind": "seen", "seen": seen})
            continue
        environment: dict[str, str] = told["environment"]
        given = {n[len(PREFIX) :]: environment.pop(n) for n in list(environment) if n.startswith(PREFIX)}
        if "HOSTNAME" in os.environ:
            environment.setdefault("HOSTNAME", os.environ["HOSTNAME"])  # the engine's to set
        folder = given.get("FOLDER", "/function")
        os.chdir(folder)
        shaped = any(_shapes_the_start(name) and os.environ.get(name) != environment[name] for name in environment)
        if shaped or shadowing(folders_of(folder)):
            # Python and the C library read such variables only when a program starts, and what imported the library's
            # modules here would have imported the function's. Start once more.
            environment.update({PREFIX + name: value for name, value in given.items()})
            arguments = getattr(sys, "orig_argv", None) or [sys.executable, os.path.abspath(sys.argv[0])]
            environment[PREFIX + "CONTROL"] = str(channel.hand_over())
            os.execve(sys.executable, arguments, environment)  # noqa: S606
        os.environ.clear()
        os.environ.update(environment)
        return given


def _shapes_the_start(name: str) -> bool:
    """Whether a variable counts only when a program starts."""
    return name.startswith(("PYTHON", "LD_", "LC_", "MALLOC_", "GLIBC_")) or name in ("LANG", "LANGUAGE", "TZ")


def _read(path: str) -> str:
    """The beginning of a small file of the kernel's; empty if it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(256)
    except OSError:
        return ""
