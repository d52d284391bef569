"""Keeps images on a machine's disk within a budget.

An engine that keeps layers reports for each image its layers, and the bytes of all of them. Bytes that two images share
count once: an image's own part is its size beyond that of the largest image that it stands on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

Layers = tuple[str, ...]
"""From the bottom up."""


class Kind(IntEnum):
    """In the order in which they go."""

    VERSION = 0  # loaded again at its next call
    RUNTIME = 1  # put together again by the next start
    BASE = 2  # loaded again for the next runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One thing of this installation's on disk. ``used_at`` is in seconds since the epoch."""

    name: str
    kind: Kind
    layers: Layers
    used_at: float


async def shrink(
    kept: Sequence[Kept],
    sizes: Mapping[Layers, int],
    budget_bytes: int,
    *,
    idle_since: float,
    remove: Callable[[Kept], Awaitable[bool]],
) -> int:
    """Remove of ``kept`` until it takes at most ``budget_bytes``; how many went.

    Versions go before runtimes, and runtimes before base images, each kind in the order of its last use. An image that
    was used after ``idle_since`` stays, and so does one that another image stands on.

    :param sizes: bytes of all images of the engine by their layers, also of other owners: images of any owner may share
        layers.
    :param remove: returns False if an image cannot go because it is in use after all.
    """
    own = _own_bytes(sizes)
    alike = Counter(one.layers for one in kept)
    total = sum(own[layers] for layers in alike)
    standing_on = Counter(below for layers in sizes for below in _below(layers))
    gone = 0
    for one in sorted(kept, key=lambda one: (one.kind, one.used_at)):
        if total <= budget_bytes:
            break
        if one.used_at > idle_since or standing_on[one.layers] or not await remove(one):
            continue
        gone += 1
        alike[one.layers] -= 1
        if not alike[one.layers]:
            total -= own[one.layers]
            standing_on.subtract(_below(one.layers))
    return gone


def _own_bytes(sizes: Mapping[Layers, int]) -> dict[Layers, int]:
    return {layers: size - _largest_below(layers, sizes) for layers, size in sizes.items()}


def _largest_below(layers: Layers, sizes: Mapping[Layers, int]) -> int:
    return next((sizes[below] for below in _below(layers) if below in sizes), 0)


def _below(layers: Layers) -> list[Layers]:
    """What an image of ``layers`` can stand on, the largest first."""
    return [layers[:count] for count in range(len(layers) - 1, 0, -1)]
