"""Every container has a user of its own while it lives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from worker.engine.docker.identity import SandboxUsers, etc_binds
from worker.errors import EngineUnavailable


def test_an_id_tells_its_user_and_is_as_long_as_every_other() -> None:
    users = SandboxUsers(range(61_184, 65_520))
    sandbox_id = users.new_id(())
    assert re.fullmatch(r"[0-9a-f]{16}", sandbox_id)
    assert users.of(sandbox_id) in range(61_184, 65_520)


@pytest.mark.parametrize("size", [1, 64, 65_536])
def test_users_are_all_used_before_one_comes_again(size: int) -> None:
    users = SandboxUsers(range(1000, 1000 + size))
    seen = [users.of(users.new_id(())) for _ in range(size)]
    assert sorted(seen) == list(range(1000, 1000 + size))
    assert users.of(users.new_id(())) == seen[0]


def test_the_user_of_a_sandbox_that_lives_is_not_handed_out() -> None:
    users = SandboxUsers(range(70, 80))
    live: set[str] = set()
    for _ in range(10):
        live.add(users.new_id(live))
    assert len({users.of(one) for one in live}) == 10
    with pytest.raises(EngineUnavailable, match="raise SANDBOX_USERS"):
        users.new_id(live)
    gone = live.pop()
    assert users.of(users.new_id(live)) == users.of(gone)


def test_names_are_readable_for_the_sandbox_whatever_the_umask(tmp_path: Path) -> None:
    binds = etc_binds(tmp_path, 61_200, hosts=True)
    assert binds == [f"{tmp_path / name}:/etc/{name}:ro" for name in ("passwd", "group", "hosts")]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    assert "sandbox:x:61200:61200::/tmp:" in (tmp_path / "passwd").read_text()
    assert (tmp_path / "hosts").read_text().split() == [
        "127.0.0.1",
        "localhost",
        "::1",
        "localhost",
        "ip6-localhost",
        "ip6-loopback",
    ]


def test_an_engine_writes_the_hosts_of_a_container_with_a_network(tmp_path: Path) -> None:
    assert [bind.partition(":")[2] for bind in etc_binds(tmp_path, 61_200, hosts=False)] == [
        "/etc/passwd:ro",
        "/etc/group:ro",
    ]
