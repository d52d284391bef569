"""Rates: how many calls a second are let through, counted in Redis for all API processes together.

The generic cell rate algorithm: a bucket is one time, that at which it will be full again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.queue.queue import Queue

# ARGV: calls, then (name, microseconds a call, burst) a bucket. Takes from all of them or from none.
# Returns {wait, bucket, left, full}: microseconds until it makes sense to try again (0: taken), and of the bucket that
# has least left: its number from 1, calls left, microseconds until it is full.
_TAKE = """
local calls = tonumber(ARGV[1])
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local fulls, wait, tightest, least, refused = {}, 0, 1, math.huge, 0
for i = 2, #ARGV, 3 do
    local each, burst = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    local full = math.max(tonumber(redis.call('GET', ARGV[i]) or now), now)
    fulls[#fulls + 1] = full
    -- More calls at once than the bucket holds are let through when it is full, and paid for afterwards.
    local over = full + each * math.min(calls, burst) - (now + each * burst)
    if over > wait then wait, refused = over, #fulls end
end
for number, full in ipairs(fulls) do
    local each, burst = tonumber(ARGV[number * 3]), tonumber(ARGV[number * 3 + 1])
    if refused == 0 then
        full = full + each * calls
        fulls[number] = full
        redis.call('SET', ARGV[number * 3 - 1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
    end
    local left = math.max(0, math.floor((now + each * burst - full) / each + 0.000001))
    if left < least then tightest, least = number, left end
end
if refused > 0 then tightest, least = refused, 0 end
return {math.ceil(wait), tightest, least, math.ceil(fulls[tightest] - now)}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """``per_s`` calls a second on average, ``burst`` at once."""

    name: str
    per_s: float
    burst: int

    @classmethod
    def of(cls, name: str, per_s: float, burst: int) -> Bucket:
        """A bucket; with ``burst`` 0 the calls of one second may come at once."""
        return cls(name=name, per_s=per_s, burst=burst or max(1, math.ceil(per_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The answer of the buckets. ``wait_s`` is 0 if the calls are let through; the rest is about the tightest
    bucket."""

    wait_s: float
    bucket: Bucket
    left: int
    full_in_s: float


async def take(queue: Queue, buckets: Sequence[Bucket], calls: int) -> Taken:
    """Let ``calls`` through, or none. One round trip. :raises Unavailable: without Redis."""
    asked: list[str | int] = [calls]
    for bucket in buckets:
        asked += (f"cp:rate:{bucket.name}", max(1, round(1_000_000 / bucket.per_s)), bucket.burst)
    wait, number, left, full = await queue.evaluate(_TAKE, *asked)
    return Taken(wait_s=wait / 1e6, bucket=buckets[number - 1], left=left, full_in_s=full / 1e6)
