"""What a container may be: a pure function of the body of ``POST /containers/create``.

Everything that is not named here is refused, so that what a later engine understands is refused too.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.docker.hardening import LABEL_INSTALLATION
from worker.engine.proxy.calls import Refused

Test = Callable[[Any], bool]
_MOST_PROCESSES = 1024
_EGRESS_CAPABILITIES = frozenset(("NET_ADMIN", "SETUID", "SETGID"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """:param roots: folders of the host of which containers may see parts. :param seccomp: the profile that each has.
    :param oci_runtime: the OCI runtime that each has; None for the engine's default.
    :param egress_program: argv without its last part of the program that closes a network, as root.
    :param look_program: argv of the program that looks at the machine's addresses, in the machine's network.
    """

    installation: str
    roots: tuple[str, ...]
    seccomp: str
    oci_runtime: str | None
    egress_program: tuple[str, ...]
    look_program: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """:param network: the container or network by which it sends, which has to be of this installation; None without
    one."""

    network: str | None


def created(body: bytes, policy: Policy) -> Created:
    """Judge a container.

    :raises Refused: naming the member at fault.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("a container's description is no JSON") from error
    if not isinstance(asked, dict):
        raise Refused("a container's description is no object")
    argv = [*_texts(asked.get("Entrypoint")), *_texts(asked.get("Cmd"))]
    closes_network = tuple(argv[:-1]) == policy.egress_program
    _judge(asked, _top(policy, closes_network), "")
    host = asked.get("HostConfig")
    if not isinstance(host, dict):
        raise Refused("HostConfig is missing")
    _judge(host, _host(policy, closes_network), "HostConfig.")
    for name in (
        "CapDrop",
        "ReadonlyRootfs",
        "SecurityOpt",
        "Memory",
        "MemorySwap",
        "PidsLimit",
        "NetworkMode",
        "LogConfig",
    ):
        if name not in host:
            raise Refused(f"HostConfig.{name} is missing")
    if host["Memory"] != host["MemorySwap"]:
        raise Refused("HostConfig.MemorySwap is not the memory")
    mode = host["NetworkMode"]
    if mode == "host":
        if tuple(argv) != policy.look_program or host.get("Binds") or host.get("Mounts"):
            raise Refused("HostConfig.NetworkMode is the machine's own")
        return Created(network=None)
    return Created(network=None if mode == "none" else mode)


def _top(policy: Policy, closes_network: bool) -> Mapping[str, Test]:
    return {
        "Image": lambda value: isinstance(value, str),
        "Entrypoint": _are_texts,
        "Cmd": _are_texts,
        "WorkingDir": lambda value: isinstance(value, str),
        "Env": _are_texts,
        "User": lambda value: value == "0:0" if closes_network else _is_nobody(value),
        "Labels": lambda value: isinstance(value, dict) and value.get(LABEL_INSTALLATION) == policy.installation,
        **dict.fromkeys(("Tty", "OpenStdin", "AttachStdin", "StdinOnce"), _is(False)),
        **dict.fromkeys(("AttachStdout", "AttachStderr", "NetworkDisabled"), lambda value: isinstance(value, bool)),
        "Healthcheck": _is({"Test": ["NONE"]}),
        "StopSignal": _is("SIGKILL"),
        "HostConfig": lambda value: isinstance(value, dict),
    }


def _host(policy: Policy, closes_network: bool) -> Mapping[str, Test]:
    capabilities = _EGRESS_CAPABILITIES if closes_network else frozenset()
    security = {"no-new-privileges:true", f"seccomp={policy.seccomp}"}
    return {
        "Binds": lambda value: isinstance(value, list) and all(_is_bind(one, policy.roots) for one in value),
        "Mounts": lambda value: isinstance(value, list) and all(_is_mount(one, policy.roots) for one in value),
        "NetworkMode": lambda value: isinstance(value, str) and value != "",
        "IpcMode": _is("private"),
        "CgroupnsMode": _is("private"),
        "UsernsMode": lambda value: value in ("", "host"),
        "Privileged": _is(False),
        "CapDrop": _is(["ALL"]),
        "CapAdd": lambda value: isinstance(value, list) and set(_texts(value)) <= capabilities,
        "ReadonlyRootfs": _is(True),
        "Init": lambda value: isinstance(value, bool),
        "SecurityOpt": lambda value: isinstance(value, list) and len(value) == 2 and set(_texts(value)) == security,
        **dict.fromkeys(("Memory", "MemorySwap", "NanoCpus", "CpuShares", "ShmSize"), _is_positive),
        "PidsLimit": lambda value: _is_positive(value) and value <= _MOST_PROCESSES,
        "OomScoreAdj": lambda value: _is_positive(value) and value <= 1000,
        "Tmpfs": lambda value: isinstance(value, dict) and all(_is_tmpfs(*one) for one in value.items()),
        "Ulimits": lambda value: isinstance(value, list),
        "LogConfig": _is({"Type": "none"}),
        "RestartPolicy": _is({"Name": "no"}),
        "AutoRemove": _is(False),
        "Runtime": lambda value: policy.oci_runtime is not None and value == policy.oci_runtime,
    }


def _judge(given: Mapping[str, Any], tests: Mapping[str, Test], where: str) -> None:
    for name, value in given.items():
        test = tests.get(name)
        if test is None or not test(value):
            raise Refused(f"{where}{name[:50]} is {json.dumps(value)[:100]}, which no sandbox has")


def _is(expected: object) -> Test:
    return lambda value: type(value) is type(expected) and value == expected


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _texts(value: Any) -> list[str]:
    return value if _are_texts(value) else []


def _is_nobody(value: Any) -> bool:
    """Whether ``user:group`` are two numbers that are not root's."""
    if not isinstance(value, str):
        return False
    parts = value.split(":")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts)


def _is_below(path: Any, roots: tuple[str, ...]) -> bool:
    """Whether ``path`` is a plain path below one of ``roots``."""
    return (
        isinstance(path, str)
        and posixpath.normpath(path) == path
        and any(path.startswith(f"{root.rstrip('/')}/") for root in roots)
    )


def _is_bind(value: Any, roots: tuple[str, ...]) -> bool:
    parts = value.split(":") if isinstance(value, str) else []
    return len(parts) == 3 and _is_below(parts[0], roots) and parts[1].startswith("/") and parts[2] in ("ro", "rw")


def _is_mount(value: Any, roots: tuple[str, ...]) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"Type", "Source", "Target", "ReadOnly"}
        and value["Type"] == "bind"
        and value["ReadOnly"] is True
        and _is_below(value["Source"], roots)
    )


def _is_tmpfs(path: Any, options: Any) -> bool:
    given = options.split(",") if isinstance(options, str) else []
    return isinstance(path, str) and path.startswith("/") and {"nosuid", "nodev"} <= set(given)
