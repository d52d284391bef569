"""Processes as a test sees them, which may end at any moment while it looks."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """Its words; none once it has ended, also while its parent has not taken the exit code yet."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # a zombie counts as one
        return []


def assert_gone(processes: Iterable[psutil.Process], within_s: float = 10) -> None:
    """Fail if one of them still runs after ``within_s``. A zombie does not run: init takes it when it gets to it."""
    _, left = psutil.wait_procs(processes, timeout=within_s)
    assert [process for process in left if runs(process)] == []


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one whose exit code was not taken yet has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
