"""The connections to the worker, and what is said on the one that controls the sandbox.

``worker/sandbox/wire.py`` describes what is exchanged and ``worker/sandbox/attach.py`` how the connections are made.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

PREFIX = "CONTAINERPUB_ATTACH_"
"""Begins the names of the variables by which the worker tells the runtime how to connect and what to serve."""
READY_NONCE = "0" * 16
"""The nonce of what is sent while no call runs."""


class Channel:
    """The control connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._received = bytearray()
        # A forked child that spoke here would garble the parent's answers.
        os.register_at_fork(after_in_child=connection.close)

    def hand_over(self) -> int:
        """The descriptor, for the program that this process is about to become."""
        self._connection.set_inheritable(True)
        return self._connection.fileno()

    def receive(self) -> dict[str, Any] | None:
        """The next call, or ``None`` once the worker is gone."""
        received = self._received
        while True:
            if len(received) >= 4:
                end = 4 + int.from_bytes(received[:4], "big")
                if len(received) >= end:
                    call: dict[str, Any] = json.loads(received[4:end])
                    del received[:end]
                    return call
            data = self._connection.recv(262144)
            if not data:
                return None
            received += data

    def send(self, meta: dict[str, Any], result: bytes | None = None) -> None:
        """``meta`` must begin with its nonce; ``result`` is JSON text, or the text of a log entry."""
        body = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode()
        if result is not None:
            body += b"\n" + result
        with self._lock:
            self._connection.sendall(len(body).to_bytes(4, "big") + body)


def connect(address: str, role: str, token: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    connection.sendall(f"{role:<7} {token}".encode())
    return connection


def printable(text: str) -> str:
    """``text`` with lone surrogates escaped, which no encoding of ours could carry."""
    return text.encode("utf-8", "backslashreplace").decode()
