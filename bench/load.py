"""A closed-loop load generator in a process of its own: N keep-alive connections, one request in flight on each.

On two cores the generator must not be what is measured: it writes request bytes that were built beforehand, looks for
two things in an answer (its status and a piece of its body), and speaks only to this machine. Every latency is kept;
percentiles are taken from all of them.

    python -m bench.load < load.json > outcome.json
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

from bench.figure import WrongAnswer, percentile

GRACE_S = 90.0
"""How long after its time is over the last answers may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Ends when ``duration_s`` is over or ``count`` requests were sent (0: no bound), whichever is first.

    :param request: a whole HTTP/1.1 request as text.
    :param status: the status that every answer must have. :param contains: a text that every body must contain.
    :param warmup_s: how long before the measured time requests are sent that do not count.
    :param collect: whether to keep the bodies.
    """

    port: int
    request: str
    connections: int
    duration_s: float
    count: int = 0
    warmup_s: float = 0.0
    status: int = 200
    contains: str = ""
    collect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``elapsed_s`` runs from the first counted request to the last answer. Times without a unit are Unix seconds."""

    answers: int
    started: float
    elapsed_s: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    bodies: list[str]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.elapsed_s

    def summary(self) -> dict[str, object]:
        """For the JSON file."""
        return {name: value for name, value in asdict(self).items() if name not in ("bodies", "started")} | {
            "per_second": self.rate
        }


async def run(load: Load) -> Outcome:
    """Put ``load`` on the platform. Raises :class:`WrongAnswer` when a single answer was wrong."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(load.warmup_s + load.duration_s + GRACE_S + 10):
            out, _ = await process.communicate(json.dumps(asdict(load)).encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise WrongAnswer(f"the load generator ended with {process.returncode}")
    said = json.loads(out)
    if said["errors"]:
        raise WrongAnswer(f"{said['errors']} of {said['errors'] + said['answers']} answers were wrong: {said['first']}")
    del said["errors"], said["first"]
    return Outcome(**said)


class _Crew:
    """What all connections share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = load.request.encode()
        self.contains = load.contains.encode()
        self.latencies = array("d")
        self.bodies: list[str] = []
        self.errors = 0
        self.first = ""
        self.sent = 0
        self.counting = False
        self.stopping = False
        self.started = self.last = 0.0
        self.open = 0
        self.done = asyncio.Event()

    def may_send(self) -> bool:
        if self.stopping or (self.load.count and self.counting and self.sent >= self.load.count):
            return False
        if self.counting:
            self.sent += 1
        return True

    def wrong(self, what: str) -> None:
        self.errors += 1
        self.first = self.first or what[:500]

    def left(self) -> None:
        self.open -= 1
        if self.open == 0:
            self.done.set()


class _Connection(asyncio.Protocol):
    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._received = b""
        self._sent_at = 0.0
        self._counts = False
        self._busy = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._crew.open += 1

    def send(self) -> None:
        crew = self._crew
        if not crew.may_send():
            self._transport.close()
            return
        self._counts = crew.counting
        self._busy = True
        self._sent_at = time.perf_counter()
        self._transport.write(crew.request)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = received.find(b"Content-Length: ", 0, head)
        end = head + 4 + (int(received[at + 16 : received.find(b"\r", at)]) if at > 0 else 0)
        if len(received) < end:
            return
        now = time.perf_counter()
        self._received = b""
        self._busy = False
        crew = self._crew
        if int(received[9:12]) != crew.load.status or received.find(crew.contains, head) < 0 or len(received) > end:
            crew.wrong(received.decode("utf-8", "replace"))
        elif self._counts:
            crew.latencies.append(now - self._sent_at)
            crew.last = now
            if crew.load.collect:
                crew.bodies.append(received[head + 4 :].decode())
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._busy:
            self._crew.wrong(f"the connection was lost: {error}")
        self._crew.left()


async def _generate(load: Load) -> dict[str, object]:
    crew = _Crew(load)
    loop = asyncio.get_running_loop()
    connections: list[_Connection] = []
    for _ in range(load.connections):
        _, connection = await loop.create_connection(lambda: _Connection(crew), "127.0.0.1", load.port)
        connections.append(connection)

    def begin() -> None:
        crew.counting = True
        crew.started = crew.last = time.perf_counter()

    def stop() -> None:
        crew.stopping = True

    if load.warmup_s:
        loop.call_later(load.warmup_s, begin)
    else:
        begin()
    loop.call_later(load.warmup_s + load.duration_s, stop)
    began = time.time() + load.warmup_s
    for connection in connections:
        connection.send()
    try:
        async with asyncio.timeout(load.warmup_s + load.duration_s + GRACE_S):
            await crew.done.wait()
    except TimeoutError:
        crew.wrong(f"no answer within {GRACE_S:g} s")
    ordered = sorted(1000 * latency for latency in crew.latencies)
    if not ordered:
        crew.wrong("there was no answer at all")
        ordered = [0.0]
    return {
        "answers": len(crew.latencies),
        "errors": crew.errors,
        "first": crew.first,
        "started": began,
        "elapsed_s": max(crew.last - crew.started, 1e-9),
        "mean_ms": sum(ordered) / len(ordered),
        "p50_ms": percentile(ordered, 50),
        "p95_ms": percentile(ordered, 95),
        "p99_ms": percentile(ordered, 99),
        "max_ms": ordered[-1],
        "bodies": crew.bodies,
    }


def main() -> None:
    load = Load(**json.load(sys.stdin))
    # A collection pause would be counted as the platform's; what is kept is numbers and text, nothing in cycles.
    gc.disable()
    json.dump(uvloop.run(_generate(load)), sys.stdout)


if __name__ == "__main__":
    main()
