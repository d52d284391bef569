"""What goes when images take more disk than they may, and in which order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from worker.engine.disk_budget import Kept, Kind, Layers, shrink

BASE: Layers = ("base",)
RUNTIME: Layers = (*BASE, "runtime")
PACKAGES: Layers = (*RUNTIME, "packages")
SIZES: dict[Layers, int] = {BASE: 1000, RUNTIME: 1010, PACKAGES: 1110}
IDLE_SINCE = 100.0


def version(name: str, used_at: float, *, on: Layers = RUNTIME) -> Kept:
    return Kept(name=name, kind=Kind.VERSION, layers=(*on, name), used_at=used_at)


def with_sizes(kept: list[Kept], own: int = 5) -> dict[Layers, int]:
    return SIZES | {one.layers: SIZES[one.layers[:-1]] + own for one in kept if one.kind is Kind.VERSION}


async def shrunk(kept: list[Kept], budget: int, *, refused: Collection[str] = ()) -> list[str]:
    """The names of those that went, in order."""
    gone: list[str] = []

    async def remove(one: Kept) -> bool:
        if one.name in refused:
            return False
        gone.append(one.name)
        return True

    assert await shrink(kept, with_sizes(kept), budget, idle_since=IDLE_SINCE, remove=remove) == len(gone)
    return gone


async def test_what_was_not_used_for_longest_goes_first_and_no_more_than_needed() -> None:
    kept = [version("new", 30), version("old", 10), version("middle", 20)]
    assert await shrunk(kept, 15) == []
    assert await shrunk(kept, 14) == ["old"]
    assert await shrunk(kept, 5) == ["old", "middle"]


async def test_what_is_shared_counts_once_and_what_is_somebody_elses_not_at_all() -> None:
    packages = Kept(name="packages", kind=Kind.RUNTIME, layers=PACKAGES, used_at=0)
    runtime = Kept(name="runtime", kind=Kind.BASE, layers=RUNTIME, used_at=0)
    kept = [version(name, 10, on=PACKAGES) for name in ("a", "b")] + [packages, runtime]
    assert await shrunk(kept, 10 + 100 + 2 * 5) == []
    assert await shrunk(kept, 10 + 100 + 2 * 5 - 1) == ["a"]


async def test_runtimes_go_after_versions_and_their_bases_last() -> None:
    packages = Kept(name="packages", kind=Kind.RUNTIME, layers=PACKAGES, used_at=0)
    runtime = Kept(name="runtime", kind=Kind.BASE, layers=RUNTIME, used_at=0)
    kept = [runtime, packages, version("a", 50, on=PACKAGES), version("b", 60)]
    assert await shrunk(kept, 0) == ["a", "b", "packages", "runtime"]


async def test_what_another_stands_on_stays_and_what_stands_may_be_anybodys() -> None:
    packages = Kept(name="packages", kind=Kind.RUNTIME, layers=PACKAGES, used_at=0)
    busy = version("busy", 10, on=PACKAGES)
    assert await shrunk([packages, busy], 0, refused={"busy"}) == []
    foreign = {(*PACKAGES, "theirs"): 1200}
    gone: list[str] = []

    async def remove(one: Kept) -> bool:
        gone.append(one.name)
        return True

    await shrink([packages], SIZES | foreign, 0, idle_since=IDLE_SINCE, remove=remove)
    assert gone == []


async def test_what_was_used_of_late_or_cannot_go_stays_and_the_next_goes_instead() -> None:
    kept = [version("used", IDLE_SINCE + 1), version("busy", 10), version("idle", 20)]
    assert await shrunk(kept, 5, refused={"busy"}) == ["idle"]


async def test_images_of_equal_layers_free_disk_only_together() -> None:
    first = version("code", 10)
    second = replace(first, name="again", used_at=20)
    assert await shrunk([first, second, version("other", 30)], 5) == ["code", "again"]
