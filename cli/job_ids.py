"""Ids of jobs, shortened for people and made whole again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from cli.errors import ApiError, UsageError

if TYPE_CHECKING:
    from cli.session import Session

_BEGINNING = re.compile(r"[0-9a-fA-F-]{4,35}")
SHORTEST = 13
"""Characters that name the millisecond of the job's acceptance, since ids begin with their time."""


def short_ids(ids: Sequence[str]) -> list[str]:
    """As much of each id's beginning as no other of these ids has."""
    ordered = sorted(set(ids))
    alike = dict.fromkeys(ordered, 0)
    for one, other in pairwise(ordered):
        common = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        alike[one], alike[other] = max(alike[one], common), max(alike[other], common)
    return [each[: max(SHORTEST, alike[each] + 1)] for each in ids]


async def whole_id(session: Session, given: str) -> str:
    """The id of the one job whose id begins with ``given``.

    :raises UsageError: if several jobs' do. :raises ApiError: if no job's does.
    """
    from cli.client import Request

    if not _BEGINNING.fullmatch(given):
        return given  # as it is: the server says what is wrong with it
    params = {"id": given, "limit": "2"}
    found = (await session.call(Request(method="GET", path="/api/jobs", params=params))).document.get("items", [])
    if not found:
        problem = {"code": "not_found", "detail": f"You have no job whose id begins with {given}."}
        raise ApiError(http_status=404, problem=problem)
    if len(found) > 1:
        raise UsageError(f"Several jobs have ids that begin with {given}.", hint="Give more of it; see `jobs`.")
    return str(found[0]["id"])
