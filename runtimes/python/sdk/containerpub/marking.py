"""How a function is marked as the handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])

marked: list[Callable[..., Any]] = []


def function(handler: Handler) -> Handler:
    """Mark ``handler(event, context)``, sync or async, as what a call runs when the project names no handler."""
    marked.append(handler)
    return handler
