"""The user's function: how it is found, imported and run, and how its errors are described."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from containerpub import Context, FunctionError
from containerpub.marking import marked

from containerpub_runtime import BY_ENVIRONMENT, ROOT
from containerpub_runtime.channel import printable
from containerpub_runtime.own_modules import folders_of, give_way, library

PLATFORM_FOLDERS = [ROOT + os.sep]
"""The folders of the platform's code, whose frames are left out of the tracebacks that users see. A runtime that builds
on this one adds its own folder."""
TYPE_CHARS = 256
MESSAGE_CHARS = 16 * 1024
"""The most that is told of an error's type and message."""
_TRACEBACK_CHARS = 64 * 1024
_COROUTINE = 0x80  # inspect.CO_COROUTINE, without what importing inspect costs at every start
_VARIADIC = 0x04  # inspect.CO_VARARGS
_IMPORT_GC = (10_000, 10, 10)
"""The thresholds of the garbage collector during the import, which makes many objects and hardly any garbage: with the
usual thresholds a tenth of its time goes into looking for garbage."""


class NoHandler(Exception):
    """The function's code does not have the handler that it should have."""


class Function:
    """The user's code: its handler, or what went wrong while it was imported."""

    def __init__(self, name: str, folder: str, dependencies: str) -> None:
        self._folders = ((folder, "/function"), (dependencies, "/dependencies"))
        self._loop: Any = None
        self.room = 0  # bytes that the running call's result may have
        self._handler: Callable[..., Any] | None = None
        self._takes_event_alone = False
        self._broken: BaseException | None = None
        if os.path.isdir(dependencies):
            import site

            site.addsitedir(dependencies)
        give_way([*folders_of(folder), *BY_ENVIRONMENT])
        sys.path[0:1] = [folder, sys.path[0], *BY_ENVIRONMENT]
        usual_gc = gc.get_threshold()
        gc.set_threshold(*_IMPORT_GC)
        try:
            found = find_handler(name, folder)
            self._handler = self.adapt(found)
            self._takes_event_alone = self._handler is found and takes_one(found)
            code = getattr(self._handler, "__code__", None)
            if code is not None and code.co_flags & _COROUTINE:
                self._event_loop()
        except BaseException as error:  # noqa: BLE001 (whatever it is, each call reports it)
            self._broken, self._broken_at = error, error.__traceback__
            if isinstance(error, MemoryError):
                # The frames in its traceback hold on to all that memory, and without some no call can be received.
                self._broken, self._broken_at = MemoryError(), None
        if gc.get_threshold() == _IMPORT_GC:  # else the function knows better
            gc.set_threshold(*usual_gc)

    def adapt(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """The handler of what was found under the handler's name."""
        return found

    def run(self, event: Any, context: Context) -> Any:
        if self._handler is None:
            assert self._broken is not None
            raise self._broken.with_traceback(self._broken_at)
        result = self._handler(event) if self._takes_event_alone else self._handler(event, context)
        if hasattr(result, "__await__"):
            return self._event_loop().run_until_complete(_await(result))
        return result

    def describe(self, error: BaseException) -> dict[str, str]:
        """``error`` for the caller, with a traceback of the function's own frames."""
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 (a user's __str__)
            message = "(the error has no readable message)"
        described = {
            "type": printable(type(error).__name__)[:TYPE_CHARS],
            "message": printable(message)[:MESSAGE_CHARS],
        }
        if not isinstance(error, (FunctionError, NoHandler)):
            try:
                with library():
                    described["traceback"] = self._traceback(error)
            except OSError:
                # No descriptor is left to read source files with: the traceback's frames hold what the function opened.
                clear_frames(error)
                with library():
                    described["traceback"] = self._traceback(error)
        return described

    def _event_loop(self) -> Any:
        # One loop for the sandbox's life, so that clients which a handler keeps stay usable.
        if self._loop is None:
            with library():
                import asyncio

            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop

    def _traceback(self, error: BaseException) -> str:
        import traceback

        whole = traceback.TracebackException(type(error), error, error.__traceback__)
        pending = [whole]
        while pending:
            part = pending.pop()
            own = [frame for frame in part.stack if not _is_platform(frame.filename)]
            part.stack = traceback.StackSummary.from_list(own)
            pending += [one for one in (part.__cause__, part.__context__) if one is not None]
            pending += getattr(part, "exceptions", None) or []
        text = "".join(whole.format())
        for folder, shown in self._folders:
            text = text.replace(folder, shown)
        return printable(text)[-_TRACEBACK_CHARS:]


def find_handler(name: str, folder: str) -> Callable[..., Any]:
    """Import the module that ``name`` (``module:attribute``) means, and return the handler.

    Without a name it is the function marked ``@function``, in ``main.py`` or in the only module there is.
    """
    module_name, _, attribute = name.partition(":")
    module_name = module_name or _only_module(folder)
    try:
        __import__(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise NoHandler(_no_module(name, module_name, folder)) from None
    found: Any = sys.modules[module_name]
    if not attribute and marked:
        if len(marked) > 1:
            names = ", ".join(sorted(one.__name__ for one in marked))
            raise NoHandler(f"several functions are marked @function ({names}): name one as the handler")
        return marked[0]
    for part in (attribute or "handler").split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = f"function {attribute!r}" if attribute else "function that is marked @function or called 'handler'"
        raise NoHandler(f"the module {module_name!r} has no {what}")
    return found  # type: ignore[no-any-return]


def takes_one(handler: Callable[..., Any]) -> bool:
    """Whether ``handler`` takes one argument and no second one: then it is called with the event alone."""
    code = getattr(handler, "__code__", None)
    if code is not None and not hasattr(handler, "__wrapped__"):
        if code.co_argcount == 2 and not hasattr(handler, "__self__"):
            return False  # nearly all are so, without what importing inspect costs
        if code.co_flags & _VARIADIC:
            return False
    with library():
        import inspect
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return False  # it does not tell, as some that are written in C
    for arguments in ((None, None), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 1
    return False


def _no_module(name: str, module_name: str, folder: str) -> str:
    message = f"there is no module {module_name!r} for the handler {name!r} in the function's folder"
    if ":" not in name and "." in name:
        module, _, attribute = name.rpartition(".")
        path = os.path.join(folder, *module.split("."))
        if os.path.isfile(path + ".py") or os.path.isfile(os.path.join(path, "__init__.py")):
            message += f': between module and function stands a colon, so write handler = "{module}:{attribute}"'
    return message


def _only_module(folder: str) -> str:
    modules = sorted(entry[:-3] for entry in os.listdir(folder) if entry.endswith(".py"))
    if "main" in modules:
        return "main"
    if len(modules) == 1:
        return modules[0]
    raise NoHandler("no handler is named, and there is no main.py to look for one in")


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _is_platform(filename: str) -> bool:
    return filename.startswith((*PLATFORM_FOLDERS, "<frozen importlib"))


def clear_frames(error: BaseException) -> None:
    """Let go of what the ended frames in the error's traceback hold."""
    at = error.__traceback__
    while at is not None:
        try:
            at.tb_frame.clear()
        except RuntimeError:  # it has not ended
            pass
        at = at.tb_next
