"""What the function says through the standard library's ``logging`` stands in the call's log, with its level.

Loggers are as in plain Python, but for where entries go that are given to no handler, or to the one that
``basicConfig`` makes unless it is told otherwise: to the call's log, and not to stderr, where levels are lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from containerpub_runtime.own_modules import library

_ELSEWHERE = ("filename", "stream", "handlers")


def handler_of(logging: Any, write: Callable[[int, str], None]) -> Any:
    """A handler for loggers of the module ``logging``."""

    class ToWorker(logging.Handler):  # type: ignore[misc]
        def emit(self, record: Any) -> None:
            try:
                if record.exc_info:
                    with library():
                        text = self.format(record)
                else:
                    text = self.format(record)
                write(record.levelno, text)
            except Exception:  # noqa: BLE001 (as every handler of the standard library)
                self.handleError(record)

    return ToWorker()


def capture(write: Callable[[int, str], None]) -> None:
    """Give what is logged to ``write``, from when the function imports ``logging``, or from now on."""
    there = sys.modules.get("logging")
    if there is not None:
        _lead(there, write)
    sys.meta_path.insert(0, _OnImport(write))  # type: ignore[arg-type]


class _OnImport:
    """Finds ``logging`` as Python would, unless that is a module of the function's own."""

    def __init__(self, write: Callable[[int, str], None]) -> None:
        self._write = write

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "logging":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        loader: Any = spec and spec.loader
        home = os.path.join(os.path.dirname(os.__file__), "logging")
        if spec is None or loader is None or os.path.dirname(spec.origin or "") != home:
            return None
        execute = loader.exec_module

        def and_lead(module: Any) -> None:
            execute(module)
            _lead(module, self._write)

        loader.exec_module = and_lead
        return spec


def _lead(logging: Any, write: Callable[[int, str], None]) -> None:
    logging.lastResort = handler_of(logging, write)
    usual = logging.basicConfig

    def basicConfig(**wanted: Any) -> None:  # noqa: N802 (the library's name)
        if all(wanted.get(name) is None for name in _ELSEWHERE):
            for name in (*_ELSEWHERE, "filemode"):
                wanted.pop(name, None)
            handler = handler_of(logging, write)
            if wanted.get("format") is None:
                handler.setFormatter(logging.Formatter())  # an entry has its level and time
            wanted["handlers"] = [handler]
        usual(**wanted)

    basicConfig.__doc__ = usual.__doc__
    logging.basicConfig = basicConfig
