"""Rates. The operator sets a rate of a user's invokes and one of an address's public calls; an owner sets a rate of a
function's invokes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from uuid import UUID

from aiohttp import web

from api.admission import LOOK_S
from api.client_address import client_address
from api.keys import QUEUE, RATE_HEADERS, SETTINGS
from shared.errors import TooMany, Unavailable
from shared.functions import FunctionSettings
from shared.queue.rates import Bucket, Taken, take


async def within_address_rate(request: web.Request) -> None:
    """Count a public call against the rate of its address. All calls pass while no rate is set, or Redis is away.

    :raises TooMany: saying when to try again.
    """
    own = request.app[SETTINGS]
    if not own.rate_per_second_per_address:
        return
    bucket = Bucket.of(
        f"address:{client_address(request)}", own.rate_per_second_per_address, own.rate_burst_per_address
    )
    taken = await _taken(request, [bucket], 1)
    if taken is not None and taken.wait_s:
        raise TooMany("Too many calls from this address.", code="rate_limited", retry_after_s=taken.wait_s)


async def _taken(request: web.Request, buckets: Sequence[Bucket], calls: int) -> Taken | None:
    try:
        async with asyncio.timeout(LOOK_S):
            return await take(request.app[QUEUE], buckets, calls)
    except (Unavailable, TimeoutError):
        return None


async def within_rate(
    request: web.Request, user: UUID, function: UUID, settings: FunctionSettings, *, calls: int = 1
) -> None:
    """Count ``calls`` against the user's and the function's rate, and have the response say in its headers how many are
    left. All calls pass while no rate is set, or Redis is away.

    :raises TooMany: saying when to try again.
    """
    own = request.app[SETTINGS]
    buckets = []
    if settings.rate_per_s:
        buckets.append(Bucket.of(f"function:{function}", settings.rate_per_s, settings.rate_burst))
    if own.rate_per_second_per_user:
        buckets.append(Bucket.of(f"user:{user}", own.rate_per_second_per_user, own.rate_burst_per_user))
    if not buckets:
        return
    taken = await _taken(request, buckets, calls)
    if taken is None:
        return
    request[RATE_HEADERS] = {
        "RateLimit-Limit": str(taken.bucket.burst),
        "RateLimit-Remaining": str(taken.left),
        "RateLimit-Reset": str(math.ceil(taken.full_in_s)),
    }
    if taken.wait_s:
        whose = "This function" if taken.bucket.name.startswith("function:") else "You"
        raise TooMany(
            f"{whose} may have {taken.bucket.per_s:g} calls a second, and {taken.bucket.burst} at once.",
            code="rate_limited",
            retry_after_s=taken.wait_s,
        )
