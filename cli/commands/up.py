"""``containerpub up``: a whole server on this machine, from one command and one folder."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from cli.config import DEFAULT_API_URL
from cli.supervisor.console import Console
from cli.supervisor.engine import Engine, choose_engine
from cli.supervisor.environment import check_settings, is_given, part_environment
from cli.supervisor.installation import Installation, open_installation
from cli.supervisor.launcher import free_port, until_ready
from cli.supervisor.ledger import Ledger
from cli.supervisor.supervisor import Supervisor
from shared.embedded.postgres import EmbeddedPostgres
from shared.embedded.redis import EmbeddedRedis
from shared.embedded.server import EmbeddedServer
from shared.errors import ContainerPubError, Unavailable
from shared.settings import load

PATIENCE_S = 60.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what a person may ask for


def run_up(data: Path, host: str, port: int, workers: int, engine: str) -> int:
    """Run until SIGINT or SIGTERM; the exit code: 0 after an orderly stop, 1 when it could not start or go on, 2 when
    the settings have mistakes.

    :param data: the data folder, made when absent; one ``up`` at a time holds it.
    :param port: 0 takes a free one. The URL is in ``data/api.url`` from the moment the API is ready.
    :param engine: ``auto``, ``docker`` or ``process``.
    """
    console = Console(sys.stdout)
    try:
        return asyncio.run(_up(data, host, port, workers, engine, dict(os.environ), console))
    finally:
        console.close()


async def _up(
    data: Path, host: str, port: int, workers: int, engine: str, user: Mapping[str, str], console: Console
) -> int:
    try:
        installation = await asyncio.to_thread(open_installation, data)
    except ContainerPubError as error:
        console.say(error.message)
        return 1
    try:
        check_settings(user, installation)
    except ContainerPubError as error:
        for line in error.message.splitlines():
            console.say(line)
        await asyncio.to_thread(installation.release)
        return 2
    ledger = Ledger(installation.processes)
    supervisor = Supervisor(console, ledger)
    stopping = asyncio.Event()
    serving = asyncio.create_task(
        _serve(installation, ledger, supervisor, console, host, port, workers, engine, user), name="serve"
    )
    stop_asked = asyncio.create_task(stopping.wait(), name="stop asked")

    def asked(number: signal.Signals) -> None:
        if stopping.is_set():
            supervisor.kill()
            return
        console.say(f"{number.name}: stopping, within 30 s; once more to kill")
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked, number)
    try:
        await asyncio.wait((serving, stop_asked), return_when=asyncio.FIRST_COMPLETED)
        return _outcome(serving, console)
    finally:
        stop_asked.cancel()
        serving.cancel()
        await asyncio.gather(serving, stop_asked, return_exceptions=True)
        await supervisor.stop()
        await asyncio.to_thread(installation.release)
        console.say("stopped")


def _outcome(serving: asyncio.Task[None], console: Console) -> int:
    """0 while it still serves: then the stop was asked for. Mistakes of this program are raised."""
    if not serving.done():
        return 0
    error = serving.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None and not isinstance(error, ContainerPubError | OSError):
        raise error
    console.say(str(error))
    return 1


async def _serve(
    installation: Installation,
    ledger: Ledger,
    supervisor: Supervisor,
    console: Console,
    host: str,
    port: int,
    workers: int,
    engine_wanted: str,
    user: Mapping[str, str],
) -> None:
    for name in await asyncio.to_thread(ledger.end_leftovers):
        console.say(f"{name} was still running for a supervisor that was killed: ended")
    port = await asyncio.to_thread(free_port, host, port)
    engine = await choose_engine(engine_wanted, user)
    _introduce(engine, installation, console)

    servers: dict[str, EmbeddedServer] = {}
    postgres = redis = None
    if not is_given("DATABASE_URL", user):
        postgres = EmbeddedPostgres(installation.postgres, output=await supervisor.feed("postgres"))
        servers["postgres"] = postgres
    if not is_given("REDIS_URL", user):
        redis = EmbeddedRedis(installation.redis, output=await supervisor.feed("redis"))
        servers["redis"] = redis
    await supervisor.start_servers(servers)
    environment = part_environment(
        user,
        installation,
        host=host,
        port=port,
        engine=engine,
        database_url=postgres.dsn if postgres else None,
        redis_url=redis.url if redis else None,
    )
    await supervisor.run_once("migrate", "cli", "migrate", environment=environment)
    parts = [("scheduler", "scheduler"), ("api", "api"), *((f"worker-{n}", "worker") for n in range(1, workers + 1))]
    await supervisor.start_parts(parts, environment)

    url = _url(host, port)
    beside = [
        asyncio.create_task(_announce(url, installation, console), name="announce"),
        asyncio.create_task(_rotate_keys(supervisor, environment, console), name="rotate keys"),
    ]
    try:
        await supervisor.watch()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _rotate_keys(supervisor: Supervisor, environment: Mapping[str, str], console: Console) -> None:
    """Seal everything with the first key, where there are others, so that these can be taken out."""
    if len(load(environment).keyring) > 1:
        try:
            await supervisor.run_once("rotate-keys", "cli", "rotate-keys", environment=environment)
        except Unavailable as error:
            console.say(error.message)


def _introduce(engine: Engine, installation: Installation, console: Console) -> None:
    where = f" ({engine.docker_host})" if engine.docker_host else ""
    console.say(f"engine {engine.name}{where}, data in {installation.folder}")
    for note in engine.notes:
        console.say(note)


async def _announce(url: str, installation: Installation, console: Console) -> None:
    """Wait until the API is ready, however long that takes, and say what to do with it."""
    loop = asyncio.get_running_loop()
    complain_at = loop.time() + PATIENCE_S

    def complain() -> None:
        nonlocal complain_at
        if loop.time() > complain_at:
            complain_at = loop.time() + PATIENCE_S
            console.say(f"{url}/api/ready still does not answer 200: see the lines above")

    await until_ready(url, complain)
    await asyncio.to_thread(_write_url, installation.url_file, url)
    console.say(f"ready: {url}")
    console.say("next, in another terminal:")
    if url != DEFAULT_API_URL:
        console.say(f"  export API_URL={url}")
    for command in ("register", "init hello", "deploy hello", "invoke hello"):
        console.say(f"  containerpub {command}")
    console.say("Ctrl-C stops everything; the data stays.")


def _write_url(file: Path, url: str) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(f"{url}\n", encoding="ascii")
    fresh.replace(file)


def _url(host: str, port: int) -> str:
    host = EVERY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
