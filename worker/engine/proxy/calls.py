"""Which calls of the engine's API are let through: a pure function of method, path and query."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.engine.docker.hardening import LABEL_INSTALLATION


class Refused(Exception):
    """A call that no worker makes. The message says why, for the operator's log and the caller."""


class Kind(StrEnum):
    PLAIN = "plain"
    """Passed on as it is."""
    CREATE = "create"
    """Its body describes a container."""
    NETWORK = "network"
    """Its body describes a network."""
    OWN = "own"
    """About a container, which has to be of this installation."""
    ATTACH = "attach"
    """As OWN; its answer is a stream that takes the connection over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """:param subject: name or id of the container or network that the call is about, if it is about one."""

    kind: Kind
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    method: str
    path: re.Pattern[str]
    kind: Kind = Kind.PLAIN
    query: Mapping[str, re.Pattern[str]]


_ONE = r"(?P<subject>[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127})"
_IMAGE = r"[a-zA-Z0-9][a-zA-Z0-9_.:/@-]{0,254}"
_ANY = re.compile(r"[^\x00-\x1f\x7f]{0,8192}")
_FLAG = re.compile(r"0|1|true|false|True|False")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")


def _rule(method: str, path: str, kind: Kind = Kind.PLAIN, **query: re.Pattern[str]) -> _Rule:
    return _Rule(method=method, path=re.compile(path), kind=kind, query=query)


_BUILD = {
    **dict.fromkeys(("memory", "memswap", "cpuperiod", "cpuquota"), _NUMBER),
    **dict.fromkeys(("forcerm", "nocache"), _FLAG),
    **dict.fromkeys(("ulimits", "labels"), _ANY),
    "t": re.compile(_IMAGE),
    "networkmode": re.compile("none"),
    "cgroupparent": re.compile(r"(/[a-zA-Z0-9_.-]+)+|[a-zA-Z0-9_.-]+\.slice|"),
}
_RULES = (
    _rule("GET", "_ping"),
    _rule("HEAD", "_ping"),
    _rule("GET", "version"),
    _rule("GET", "info"),
    _rule("GET", "events", since=_NUMBER, until=_NUMBER, filters=_ANY),
    _rule("GET", "containers/json", all=_FLAG, size=_FLAG, filters=_ANY),
    _rule("POST", "containers/create", Kind.CREATE, name=re.compile(_ONE)),
    _rule("GET", f"containers/{_ONE}/json", Kind.OWN),
    _rule("POST", f"containers/{_ONE}/(start|pause|unpause)", Kind.OWN),
    _rule("POST", f"containers/{_ONE}/kill", Kind.OWN, signal=re.compile("SIGKILL")),
    _rule("POST", f"containers/{_ONE}/wait", Kind.OWN),
    _rule(
        "POST", f"containers/{_ONE}/attach", Kind.ATTACH, **dict.fromkeys(("stdout", "stderr", "stream", "logs"), _FLAG)
    ),
    _rule("DELETE", f"containers/{_ONE}", Kind.OWN, v=_FLAG, force=_FLAG),
    _rule("GET", "images/json", all=_FLAG, filters=_ANY, digests=_FLAG),
    _rule("GET", f"images/{_IMAGE}/json"),
    _rule("GET", f"images/{_IMAGE}/get"),
    _rule("POST", "images/load", quiet=_FLAG),
    _rule("POST", "images/create", fromImage=re.compile(_IMAGE), tag=re.compile(r"[a-zA-Z0-9_.-]{0,128}")),
    _rule("POST", f"images/{_IMAGE}/tag", repo=re.compile(_IMAGE), tag=re.compile(r"[a-zA-Z0-9_.-]{1,128}")),
    _rule("DELETE", f"images/{_IMAGE}", force=_FLAG, noprune=_FLAG),
    _rule("GET", "networks", filters=_ANY),
    _rule("POST", "networks/create", Kind.NETWORK),
    _rule("DELETE", f"networks/{_ONE}"),
    _rule("POST", "build", **_BUILD),
)
_VERSION = re.compile(r"/(v[0-9]{1,2}\.[0-9]{1,3}/)?(?P<rest>.*)", re.DOTALL)


def allowed(method: str, path: str, query: Sequence[tuple[str, str]]) -> Allowed:
    """How to treat a call.

    :param path: as it was sent, not decoded: the names of workers need no escapes.
    :raises Refused: no worker makes such a call.
    """
    match = _VERSION.fullmatch(path)
    rest = "" if match is None else match["rest"]
    for rule in _RULES:
        if rule.method == method and (found := rule.path.fullmatch(rest)) is not None and ".." not in rest:
            _judge_query(rule, query)
            return Allowed(kind=rule.kind, subject=found.groupdict().get("subject"))
    raise Refused(f"{method} {path[:200]} is no call that workers make")


def network(body: bytes, installation: str) -> None:
    """Judge what ``POST /networks/create`` describes: the one bridge of this installation.

    :raises Refused: it is another.
    """
    try:
        asked = json.loads(body)
        usual = (
            asked["Driver"] == "bridge"
            and asked["Name"] == f"containerpub-{installation}"
            and asked["Labels"] == {LABEL_INSTALLATION: installation}
            and asked["Options"].keys() == {"com.docker.network.bridge.enable_icc", "com.docker.network.bridge.name"}
            and asked["Options"]["com.docker.network.bridge.enable_icc"] == "false"
            and asked["Options"]["com.docker.network.bridge.name"].startswith("cp-")
            and asked.keys() <= {"Name", "Driver", "EnableIPv6", "Internal", "Labels", "Options", "CheckDuplicate"}
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        usual = False
    if not usual:
        raise Refused("workers make no other network than the bridge of their installation")


def _judge_query(rule: _Rule, query: Sequence[tuple[str, str]]) -> None:
    seen = set()
    for name, value in query:
        pattern = rule.query.get(name)
        if pattern is None or name in seen or pattern.fullmatch(value) is None:
            raise Refused(f"{name[:50]}={value[:200]} is no parameter that workers send to {rule.path.pattern}")
        seen.add(name)
