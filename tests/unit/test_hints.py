"""Failures say which limit of the sandbox they most likely met, and what to do."""

from __future__ import annotations

import pytest

from worker.sandbox.hints import ended, hint


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (139, "(SIGSEGV: native code"),
        (135, "(SIGBUS: memory behind a file was not there: /dev/shm"),
        (137, "(SIGKILL: "),
        (134, "(SIGABRT: "),
        (132, "(SIGILL: "),
        (136, "(SIGFPE: "),
        (159, "(SIGSYS: "),
        (153, "(SIGXFSZ: "),
        (152, "(SIGXCPU: "),
        (143, "(SIGTERM: "),
        (129, "(SIGHUP)"),
    ],
)
def test_a_signal_is_named_with_its_likely_cause(code: int, told: str) -> None:
    message = ended(code)
    assert message.startswith(f"the process ended with exit code {code} before it gave a result (")
    assert told in message


@pytest.mark.parametrize("code", [None, 0, 1, 127, 128, 128 + 33, 255])
def test_other_codes_stand_alone(code: int | None) -> None:
    assert ended(code) == f"the process ended with exit code {code} before it gave a result"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"type": "gaierror", "message": "[Errno -3] Temporary failure in name resolution"}, 'network = "egress"'),
        ({"type": "URLError", "message": "<urlopen error [Errno -2] Name or service not known>"}, "egress"),
        ({"type": "OSError", "message": "[Errno 101] Network is unreachable"}, "egress"),
        ({"type": "Error", "message": "getaddrinfo EAI_AGAIN example.com"}, "egress"),
        ({"type": "ConnectionError", "message": "x", "traceback": "NameResolutionError: Failed"}, "egress"),
        ({"type": "OSError", "message": "[Errno 28] No space left on device: '/tmp/x'"}, "/tmp and /dev/shm"),
        ({"type": "Error", "message": "ENOSPC: no space left on device, write"}, "/tmp and /dev/shm"),
        ({"type": "OSError", "message": "[Errno 24] Too many open files: 'a'"}, "close them"),
        ({"type": "Error", "message": "EMFILE: too many open files, open 'a'"}, "close them"),
        ({"type": "OSError", "message": "[Errno 30] Read-only file system: '/function/a'"}, "only /tmp"),
        ({"type": "RuntimeError", "message": "can't start new thread"}, "processes and threads"),
    ],
)
def test_an_error_of_a_limit_has_a_hint(error: dict[str, str], told: str) -> None:
    assert told in (hint("handler_error", error, network=False) or "")


def test_a_function_with_a_network_is_not_told_that_it_has_none() -> None:
    error = {"type": "gaierror", "message": "[Errno -2] Name or service not known"}
    assert hint("handler_error", error, network=True) is None
    assert hint("handler_error", error, network=None) is None
    assert "egress" not in (hint("timeout", {}, network=True) or "")


def test_time_and_memory_name_their_settings() -> None:
    assert "timeout_s" in (hint("timeout", {}, network=True) or "")
    assert "egress" in (hint("timeout", {}, network=False) or "")
    assert "memory_mb" in (hint("out_of_memory", {}, network=True) or "")


def test_an_error_of_the_functions_own_has_none() -> None:
    assert hint("handler_error", {"type": "KeyError", "message": "'a'"}, network=False) is None
