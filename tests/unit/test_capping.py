"""An engine that would not cap functions is known by what it says of itself."""

from __future__ import annotations

import pytest

from shared.capping import is_rootless, uncapped

_CAPS = {"MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True, "CgroupVersion": "1"}


@pytest.mark.parametrize("version", ["1", "2", None])
def test_an_engine_of_root_with_all_limits_is_taken(version: str | None) -> None:
    info = _CAPS | {"CgroupVersion": version, "SecurityOptions": ["name=seccomp,profile=default"], "Rootless": False}
    assert uncapped(info) is None
    assert not is_rootless(info)


@pytest.mark.parametrize("said", [{"Rootless": True}, {"SecurityOptions": ["name=seccomp", "name=rootless"]}])
def test_a_rootless_engine_is_taken_on_cgroup_v2_and_refused_on_v1_whatever_it_claims(said: dict[str, object]) -> None:
    assert is_rootless(_CAPS | said)
    assert uncapped(_CAPS | said | {"CgroupVersion": "2"}) is None
    reason = uncapped(_CAPS | said)
    assert reason is not None
    assert "rootless on cgroup v1" in reason


@pytest.mark.parametrize(
    ("field", "what"), [("MemoryLimit", "memory"), ("CpuCfsQuota", "CPU time"), ("PidsLimit", "processes")]
)
def test_an_engine_without_a_limit_is_refused_and_the_limit_named(field: str, what: str) -> None:
    reason = uncapped(_CAPS | {field: False, "CgroupVersion": "2"})
    assert reason is not None
    assert f"cannot limit {what}:" in reason


def test_an_engine_that_says_nothing_of_a_limit_is_taken() -> None:
    assert uncapped({"SecurityOptions": None}) is None
