"""The sandbox's own speed: blocking calls over its socket, no queue, no worker, no event loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

import orjson

from bench import engine
from bench.figure import WrongAnswer, median
from shared.layers import VersionLayers
from worker.sandbox.attach import SOCKET_NAME, Connections, Rendezvous
from worker.sandbox.contract import Call, SandboxSpec
from worker.sandbox.environment import environment
from worker.sandbox.wire import FrameReader, encode_call

_MOUNT = "/run/containerpub"
_START_S = 30.0
_WARM_UP = 200


async def call_ms(image: str, body: object, expect: object, count: int) -> float:
    """Median time of a call to the function in ``image``, in a container with the CPU share a function gets."""
    name = f"containerpub-bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="cp-bench-") as temporary:
        os.chmod(temporary, 0o755)
        folder = Path(temporary, "s")
        rendezvous = await asyncio.to_thread(Rendezvous, folder)
        try:
            variables = environment(_spec(image), address=f"{_MOUNT}/{SOCKET_NAME}", token=rendezvous.token)
            await engine.docker(
                *("run", "--detach", "--name", name, "--network", "none", "--read-only", "--user", "65534:65534"),
                *("--cpus", "0.5", "--memory", "128m", "--volume", f"{folder}:{_MOUNT}:ro"),
                *(part for key, value in variables.items() for part in ("--env", f"{key}={value}")),
                *(image, "python3", "/containerpub/serve.py"),
            )
            async with asyncio.timeout(_START_S):
                connections = await rendezvous.meet()
            try:
                return await asyncio.to_thread(_measure, connections, body, expect, count)
            finally:
                connections.close()
        finally:
            rendezvous.close()
            await engine.docker("rm", "--force", name)


def _measure(connections: Connections, body: object, expect: object, count: int) -> float:
    connections.stdout.setblocking(False)
    control = connections.control
    control.setblocking(True)
    control.settimeout(_START_S)
    reader = FrameReader()
    _next(control, reader)  # it is ready
    event = orjson.dumps({"body": body})
    took = []
    for _ in range(_WARM_UP + count):
        started = time.perf_counter()
        call = Call(
            job_id=UUID(int=1), attempt=1, event=event, timeout_ms=5000, max_result_bytes=1024, max_log_bytes=1024
        )
        control.sendall(encode_call(call, secrets.token_hex(8)))
        result = _next(control, reader)
        took.append(1000 * (time.perf_counter() - started))
        if result is None or orjson.loads(result) != expect:
            raise WrongAnswer(f"the bare sandbox answered {result!r}")
        connections.stdout.recv(4096)  # what it printed; unread, it would come to stand still
    return median(took[_WARM_UP:])


def _next(control: socket.socket, reader: FrameReader) -> bytes | None:
    while (frame := reader.next()) is None:
        data = control.recv(65536)
        if not data:
            raise WrongAnswer("the bare sandbox hung up")
        reader.feed(data)
    return frame.result


def _spec(image: str) -> SandboxSpec:
    return SandboxSpec(
        version_id=uuid4(),
        function_id=uuid4(),
        user_id=uuid4(),
        function_name="bare",
        version=1,
        runtime="python",
        handler="main:handler",
        layers=VersionLayers(base=image, layers=()),
        memory_mb=128,
        tmp_mb=32,
        cpus=0.5,
        timeout_ms=5000,
        env=(),
    )
