"""A worker that stops waiting for a sandbox keeps none of its connections."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import pytest

from worker.sandbox.attach import Rendezvous


def _connect(rendezvous: Rendezvous, role: str, token: str | None = None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(str(rendezvous.address))
    connection.sendall(f"{role:7} {token or rendezvous.token}".encode())
    return connection


async def test_three_roles_with_the_token_meet_and_others_are_closed(tmp_path: Path) -> None:
    rendezvous = await asyncio.to_thread(Rendezvous, tmp_path / "s")
    meeting = asyncio.create_task(rendezvous.meet())
    refused = [
        _connect(rendezvous, "control", "0" * 32),
        _connect(rendezvous, "nothing"),
    ]
    await asyncio.sleep(0.05)
    roles = [_connect(rendezvous, role) for role in ("control", "stdout", "stderr")]
    connections = await asyncio.wait_for(meeting, 5)
    rendezvous.close()
    assert [one.recv(1) for one in refused] == [b"", b""]
    roles[1].sendall(b"x")
    assert await asyncio.get_running_loop().sock_recv(connections.stdout, 1) == b"x"
    connections.close()
    for one in (*refused, *roles):
        one.close()


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("turns", range(8))
async def test_a_meeting_that_is_cancelled_as_a_connection_arrives_closes_it(tmp_path: Path, turns: int) -> None:
    rendezvous = await asyncio.to_thread(Rendezvous, tmp_path / "s")
    meeting = asyncio.create_task(rendezvous.meet())
    await asyncio.sleep(0.01)
    connection = _connect(rendezvous, "control")
    for _ in range(turns):
        await asyncio.sleep(0)
    meeting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await meeting
    rendezvous.close()
    gc.collect()  # what was lost is told of here
    try:
        assert await asyncio.to_thread(connection.recv, 1) == b""
    except ConnectionResetError:
        pass  # it was never accepted
    finally:
        connection.close()
