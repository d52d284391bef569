"""Every test of this run fails where code of ours blocks the loop that it runs on."""

from __future__ import annotations

import asyncio

import pytest
from blockbuster import BlockingError

from shared.postgres.migrate import known_migrations


async def test_reading_files_on_the_loop_is_an_error_and_on_a_thread_it_is_none() -> None:
    with pytest.raises(BlockingError):
        known_migrations()
    assert await asyncio.to_thread(known_migrations)
