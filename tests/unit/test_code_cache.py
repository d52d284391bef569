"""The cache of versions' code: complete entries only, within its budget, safe among several workers."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.build import code_cache
from worker.build.code_cache import CodeCache, entry_name

ALICE, BOB = uuid.uuid4(), uuid.uuid4()


def filling(content: str = "x", size: int = 100) -> Callable[[Path], int]:
    def fill(tree: Path) -> int:
        (tree / "package").mkdir()
        (tree / "package" / "module.py").write_text(content)
        return size

    return fill


def opened(root: Path, worker: str = "one", budget: int = 1000) -> CodeCache:
    cache = CodeCache(root / "code", worker, budget)
    cache.open()
    return cache


def linked(cache: CodeCache, name: str, target: Path) -> str:
    target.mkdir()
    cache.link(name, target)
    return (target / "package" / "module.py").read_text()


def test_an_entry_is_linked_not_copied(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    name = entry_name(ALICE, "sha256:1")
    assert not cache.has(name)
    cache.add(name, filling("code"))
    assert cache.has(name)
    assert linked(cache, name, tmp_path / "a") == linked(cache, name, tmp_path / "b") == "code"
    assert (tmp_path / "a/package/module.py").samefile(tmp_path / "b/package/module.py")
    assert (tmp_path / "a/package").stat().st_mode & 0o777 == 0o755


def test_a_large_entry_is_linked_as_a_spare_once_and_handed_on(tmp_path: Path) -> None:
    cache, other = opened(tmp_path, "one"), opened(tmp_path, "two")

    def fill(tree: Path) -> int:
        for number in range(100):
            (tree / f"{number % 3}" / f"{number}").mkdir(parents=True)
            (tree / f"{number % 3}" / f"{number}" / "file").write_text(str(number))
        return 100

    cache.add("large", fill)
    cache.add("small", filling())
    for _ in range(2):
        for one in (cache, other):
            one.spare("large")
            one.spare("small")
            one.spare("absent")
    assert [folder.parent.name for folder in tmp_path.glob("code/*/*/spare")] == ["large"]
    for round in ("spare", "now"):
        target = tmp_path / round
        target.mkdir()
        cache.link("large", target)
        assert len(list(target.rglob("file"))) == 100
        assert (target / "1/1/file").samefile(next(tmp_path.glob("code/*/large/tree/1/1/file")))
        assert not list(tmp_path.glob("code/*/*/spare"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code", "now", "spare"]
    assert sorted(path.name for path in tmp_path.glob("code/*/*")) == ["large", "small"]


def test_an_absent_entry_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path).link(entry_name(ALICE, "sha256:1"), tmp_path)


def test_users_have_entries_of_their_own(tmp_path: Path) -> None:
    assert entry_name(ALICE, "sha256:1") != entry_name(BOB, "sha256:1")


def test_a_failed_filling_leaves_nothing(tmp_path: Path) -> None:
    cache = opened(tmp_path)

    def fill(tree: Path) -> int:
        (tree / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.add("entry", fill)
    assert list(tmp_path.glob("code/*/*")) == []


def test_of_two_workers_that_add_the_same_the_first_wins(tmp_path: Path) -> None:
    one, two = opened(tmp_path, "one"), opened(tmp_path, "two")

    def slower(tree: Path) -> int:
        two.add("entry", filling("two"))
        return filling("one")(tree)

    one.add("entry", slower)
    assert linked(one, "entry", tmp_path / "t") == "two"
    assert len(list(tmp_path.glob("code/*/*"))) == 1


def test_past_the_budget_the_least_recently_used_goes_but_not_the_newest(tmp_path: Path) -> None:
    cache = opened(tmp_path, budget=250)
    for number, name in enumerate(("a", "b")):
        cache.add(name, filling())
        (folder,) = tmp_path.glob(f"code/*/{name}")
        os.utime(folder, (number, number))
    linked(cache, "a", tmp_path / "t")
    cache.add("c", filling())
    assert [name for name in "abc" if cache.has(name)] == ["a", "c"]
    cache.add("d", filling(size=10_000))
    assert [name for name in "abcd" if cache.has(name)] == ["d"]
    assert (tmp_path / "t/package/module.py").read_text() == "x"


def test_an_entry_that_is_being_linked_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = opened(tmp_path, "one"), opened(tmp_path, "two", budget=0)
    cache.add("busy", filling())
    really_link = code_cache._link

    def evict_meanwhile(source: str, target: str) -> None:
        other.add("new", filling())
        really_link(source, target)

    monkeypatch.setattr(code_cache, "_link", evict_meanwhile)
    assert linked(cache, "busy", tmp_path / "t") == "x"
    monkeypatch.undo()
    other.add("newer", filling())
    assert not cache.has("busy")


def test_what_belongs_together_stays_together_though_it_takes_more_than_may_be(tmp_path: Path) -> None:
    cache = opened(tmp_path, budget=150)
    old, packages, code = (entry_name(ALICE, content) for content in ("old", "packages", "code"))
    for name, beside in ((old, ()), (packages, (packages, code)), (code, (packages, code))):
        cache.add(name, filling(), beside)
    assert [cache.has(name) for name in (old, packages, code)] == [False, True, True]


def test_what_was_not_used_for_a_day_goes_and_what_was_stays(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    names = [entry_name(ALICE, content) for content in ("used", "unused")]
    for name in names:
        cache.add(name, filling())
    (entry,) = (tmp_path / "code").glob(f"*/{names[1]}")
    long_ago = time.time() - 2 * 86_400
    os.utime(entry, (long_ago, long_ago))
    assert cache.sweep(frozenset()) == 1
    assert [cache.has(name) for name in names] == [True, False]


def test_what_was_there_before_the_machine_restarted_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path).add("entry", filling())
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(code_cache, "_BOOT_ID", boot)
    assert not opened(tmp_path).has("entry")
    assert [folder.name for folder in (tmp_path / "code").iterdir()] == ["another"]


def test_a_sweep_takes_what_dead_workers_left_half_made(tmp_path: Path) -> None:
    live, own = opened(tmp_path, "live"), opened(tmp_path, "own")
    dead = opened(tmp_path, "dead")
    for cache in (live, own, dead):
        (cache._folder / f"{cache._prefix}abc").mkdir()
    own.add("entry", filling())
    assert own.sweep(frozenset(("live",))) == 1
    assert own.sweep(frozenset(("live",))) == 0
    assert own.has("entry")
