"""What a call printed, as it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    LOGGER = "logger"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One stretch of output: consecutive bytes of one stream and level, decoded as UTF-8 with ``backslashreplace``."""

    stream: LogStream
    level: str  # debug, info, warning, error, critical
    message: str
