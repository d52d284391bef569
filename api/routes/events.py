"""A job's events as they happen: states, log lines, progress, over Server-Sent Events.

The stream begins with the job's state and ends with its final state, after all of the job's output. The id of every log
event says how much was sent so far, so that a client which comes back with ``Last-Event-ID`` goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from aiohttp import web

from api import params
from api.call import Call
from api.keys import JOBS, QUEUE, SETTINGS, SUBSCRIPTIONS
from api.middleware import mark
from api.operation import Operation, Parameter
from api.routes.jobs import RECORD_S, await_end, job_of, job_views
from api.session import allowed
from api.subscriptions import Subscription
from shared.errors import ContainerPubError
from shared.jobs import Job, JobStatus
from shared.jobview import job_view
from shared.scopes import Scope

_BEAT_S = 15.0
_LAST = "end"
_LOGGER = "logger"
_RETRY_MS = 1000


class _Sent:
    """How much of each attempt's output was sent: characters of a stream, entries of the logger."""

    def __init__(self, last_id: str) -> None:
        self._counts: dict[int, Counter[str]] = {}  # by epoch
        self.newest = self._oldest = 0
        parts = last_id.split(":")
        if len(parts) == 4 and all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            epoch, *counts = (int(part) for part in parts)
            self.newest = self._oldest = epoch  # the output of earlier attempts was sent completely
            self._counts[epoch] = Counter(dict(zip(("stdout", "stderr", _LOGGER), counts, strict=True)))

    @property
    def id(self) -> str:
        counts = self._counts.get(self.newest, Counter())
        return f"{self.newest}:{counts['stdout']}:{counts['stderr']}:{counts[_LOGGER]}"

    def missing(self, epoch: int, before: Counter[str]) -> bool:
        """Whether output of an attempt before the position ``before`` was not sent yet."""
        sent = self._counts.get(epoch, Counter())
        return epoch >= self._oldest and any(count > sent[stream] for stream, count in before.items())

    def new(self, epoch: int, before: Counter[str], entries: Iterable[Sequence[str]]) -> Iterable[tuple[str, str, str]]:
        """The parts of ``entries`` (stream, level, text) that were not sent yet; they count as sent from now on.

        :param before: the position in the output at which ``entries`` begin.
        """
        if epoch < self._oldest:
            return
        self.newest = max(self.newest, epoch)
        sent = self._counts.setdefault(epoch, Counter())
        at = Counter(before)
        for stream, level, text in entries:
            size = 1 if stream == _LOGGER else len(text)
            known = sent[stream] - at[stream]
            at[stream] += size
            if known >= size:
                continue
            sent[stream] = at[stream]
            yield stream, level, text if stream == _LOGGER else text[max(known, 0) :]


async def read_events(request: web.Request, call: Call) -> web.StreamResponse:
    caller = call.caller
    last_id = request.headers.get("Last-Event-ID", "")
    if last_id == _LAST:
        await job_of(request, caller.user.id)
        return web.Response(status=204)  # tells a browser's EventSource not to come back
    job = await job_of(request, caller.user.id)
    subscriptions = request.app[SUBSCRIPTIONS]
    subscription = subscriptions.open(job)
    try:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        mark(request, response)
        await response.prepare(request)
        await response.write(b"retry: %d\n\n" % _RETRY_MS)
        try:
            await _Stream(request, response, subscription, _Sent(last_id)).run()
        except _DoesNotRead:
            if request.transport is not None:
                request.transport.abort()  # an orderly close would wait for this client too
        return response
    finally:
        subscriptions.close(subscription)


class _DoesNotRead(Exception):
    """The client does not read: it would keep its stream open for ever, even after its session ended."""


class _Stream:
    def __init__(
        self, request: web.Request, response: web.StreamResponse, subscription: Subscription, sent: _Sent
    ) -> None:
        self._request = request
        self._app = request.app
        self._response = response
        self._subscription = subscription
        self._sent = sent
        self._shown: tuple[Any, ...] = (None, 0, None)  # status, attempt and due time that were sent last
        self._doubted = False
        self._progress: object = None

    async def run(self) -> None:
        """Send events until the job's end was sent, the caller may not read the job any more, or this process stops."""
        await self._app[SUBSCRIPTIONS].subscribe([self._subscription])
        while not self._app[SUBSCRIPTIONS].closing:
            events = self._subscription.take()
            look, self._subscription.look = self._subscription.look, False
            missed, self._subscription.missed = self._subscription.missed, False
            for event in events:
                if event["kind"] == "state":
                    if await self._look(event):
                        return
                    if event["status"] == JobStatus.RUNNING:
                        await self._app[SUBSCRIPTIONS].missed(self._subscription, event["worker"])
                else:
                    await self._tell(event)
            if look and await self._look():
                return
            if missed:
                await self._app[SUBSCRIPTIONS].subscribe([self._subscription])
            if self._subscription.is_set():
                continue
            try:
                async with asyncio.timeout(_BEAT_S):
                    await self._subscription.wait()
            except TimeoutError:
                # Look again now and then: a push may be lost with its worker, and the caller's session may have ended.
                self._subscription.look = True
                try:
                    await allowed(self._request, Scope.READ)
                except ContainerPubError:
                    return
                await self._write(b": %d\n\n" % time.time())

    async def _tell(self, event: dict[str, Any]) -> None:
        """Send the event in a push to the client."""
        if event["kind"] == "progress":
            progress = {name: event[name] for name in ("attempt", "fraction", "message")}
            if progress != self._progress:
                self._progress = progress
                await self._send("progress", progress)
            return
        before = Counter(event["before"])
        if self._sent.newest and event["epoch"] > self._sent.newest:
            await self._send_rest()  # the last output of the attempt before
        if self._sent.missing(event["epoch"], before):
            await self._app[SUBSCRIPTIONS].subscribe([self._subscription])
        else:
            await self._send_log(event["epoch"], event["attempt"], before, event["entries"])

    async def _look(self, heard: dict[str, Any] | None = None) -> bool:
        """Send the job's state unless it is the one that was sent last. Whether it is final, and all was sent.

        :param heard: the state in a push, if the job is not final yet.
        """
        job = (
            await self._recorded(heard)
            if heard
            else await self._app[JOBS].get(self._subscription.user, self._subscription.job)
        )
        if job is None:  # deleted with its function, or by retention
            return True
        if job.final:
            await self._send_rest()
        if heard and heard["status"] != JobStatus.RUNNING:
            view = job_view(job)
        else:
            (view,) = await job_views(self._app[QUEUE], [job])
        if not job.final:
            if heard:
                view |= {"status": heard["status"], "attempt": heard["attempt"]}
            elif self._is_behind(view):
                return False
        due = view["run_at"] if view["status"] == JobStatus.SCHEDULED else None
        state = (view["status"], view["attempt"], due)
        if state != self._shown:
            self._shown, self._doubted = state, False
            await self._send("state", view, _LAST if job.final else None)
        return job.final

    async def _recorded(self, heard: dict[str, Any]) -> Job | None:
        """The job, once Postgres has the record of the attempt that led to the state ``heard``."""
        attempt = 0 if heard["status"] == JobStatus.RUNNING else heard["attempt"]
        return await await_end(
            self._app,
            self._subscription.user,
            self._subscription.job,
            RECORD_S,
            until=lambda job: job.attempt >= attempt,
        )

    def _is_behind(self, view: dict[str, Any]) -> bool:
        """Whether Postgres may still lack the record of the attempt that was sent last, in a state that no push told.
        Corrects in ``view`` what is certain without that record."""
        status, attempt, _ = self._shown
        if view["status"] == JobStatus.RUNNING:
            view["attempt"] = max(view["attempt"], attempt if status == JobStatus.RUNNING else attempt + 1)
            return False
        # Or the attempt was handed back and the push of that was lost: then the next look finds the same state.
        behind = status == JobStatus.RUNNING and view["attempt"] < attempt and not self._doubted
        self._doubted = behind
        return behind

    async def _send_rest(self) -> None:
        """Send the output in the records that was not sent yet."""
        logs = await self._app[JOBS].logs(self._subscription.job)
        for epoch in dict.fromkeys(row.epoch for row in logs):
            mine = [row for row in logs if row.epoch == epoch]
            entries = [(row.stream, row.level, row.message) for row in mine]
            await self._send_log(epoch, mine[0].attempt, Counter(), entries)

    async def _send_log(self, epoch: int, attempt: int, before: Counter[str], entries: Iterable[Sequence[str]]) -> None:
        for stream, level, text in self._sent.new(epoch, before, entries):
            line = {"attempt": attempt, "stream": stream, "level": level, "message": text}
            await self._send("log", line, self._sent.id)

    async def _send(self, event: str, data: object, event_id: str | None = None) -> None:
        body = orjson.dumps(data, default=params.plain)
        name = f"id: {event_id}\n" if event_id is not None else ""
        await self._write(f"event: {event}\n{name}data: ".encode() + body + b"\n\n")

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._app[SETTINGS].event_read_seconds):
                await self._response.write(data)
        except TimeoutError as error:
            raise _DoesNotRead from error


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/jobs/{job}/events",
        handler=read_events,
        scope=Scope.READ,
        summary="A job's states, log lines and progress as they happen (Server-Sent Events)",
        parameters=(
            Parameter(name="Last-Event-ID", where="header", description="Id of the last event that was received."),
        ),
        responses={200: "text/event-stream", 204: None},
    ),
)
