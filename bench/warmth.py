"""Bring a platform to the state that warm figures are about: every slot has a running sandbox."""

from __future__ import annotations

from bench import functions, load, recorded
from bench.caller import Caller
from bench.platform import Platform

_CLIENTS = 64


async def warm_hello(platform: Platform, caller: Caller, seconds: float = 4.0) -> None:
    """Deploy ``hello`` and keep all slots busy with it for so long; returns when its records are written."""
    await caller.deploy("hello", functions.HELLO)
    await load.run(
        load.Load(
            port=platform.port,
            request=caller.request("hello", functions.HELLO_BODY),
            connections=_CLIENTS,
            duration_s=seconds,
            contains=functions.HELLO_ANSWER,
        )
    )
    await recorded.settled(platform, timeout_s=60)
