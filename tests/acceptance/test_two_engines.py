"""Two workers on two container engines, which share Postgres, Redis and an S3 server, and nothing else."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aioboto3
import pytest

from bench.dockerd import PrivateDockerd, missing
from tests.client import Answer, Client
from tests.deployment import Platform
from tests.machine import lacks
from tests.s3server import S3Server

BUCKET = "artifacts"
KEY = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
GONE_S = 30.0
# Of everything that a sandbox can read and that no engine writes for each container.
BYTES = """
import hashlib, os
LEFT_OUT = {"/proc", "/sys", "/dev", "/run", "/tmp", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/mtab"}
LEFT_OUT |= {"/etc/passwd", "/etc/group"}  # a sandbox's own user
def handler(event, context):
    digest, count = hashlib.sha256(), 0
    for folder, names, files in os.walk("/"):
        names[:] = sorted(name for name in names if os.path.join(folder, name) not in LEFT_OUT)
        for name in sorted(files):
            path = os.path.join(folder, name)
            if path in LEFT_OUT or not os.path.isfile(path) or not os.access(path, os.R_OK):
                continue
            digest.update(path.encode() + b"\\0")
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            count += 1
    import idna
    return {"digest": digest.hexdigest(), "files": count, "idna": idna.__file__}
"""
FILES: dict[str, str | bytes] = {"main.py": BYTES, "requirements.txt": "idna\n"}
SETTINGS = {"timeout_s": 120, "cpus": 1, "memory_mb": 256}

pytestmark = [pytest.mark.docker, pytest.mark.timeout(420)]


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    server = S3Server(tmp_path / "s3.log")
    await asyncio.to_thread(server.start)
    try:
        async with aioboto3.Session().client("s3", endpoint_url=server.url, **KEY) as client:
            await client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        await asyncio.to_thread(server.kill)


@pytest.fixture
async def engine() -> AsyncIterator[PrivateDockerd]:
    """A second engine, without any image."""
    if (reason := missing()) is not None:
        lacks(reason)
    async with PrivateDockerd() as other:
        yield other


async def test_a_version_is_the_same_bytes_on_two_engines_that_share_only_a_store(
    database: str, redis_url: str, s3: S3Server, engine: PrivateDockerd
) -> None:
    platform = Platform(
        database_url=database,
        redis_url=redis_url,
        engine="docker",
        env={
            "S3_ENDPOINT": s3.url,
            "S3_BUCKET_NAME": BUCKET,
            "S3_ACCESS_KEY_ID": KEY["aws_access_key_id"],
            "S3_SECRET_ACCESS_KEY": KEY["aws_secret_access_key"],
            "DEPENDENCY_TIMEOUT_SECONDS": "3",
            "SANDBOX_IDLE_SECONDS": "0.5",
            "SANDBOX_GENERICS": "0",
        },
    )
    async with platform, platform.client() as client:
        await client.register()
        deployed = await client.deploy("bytes", FILES, settings=SETTINGS, prefer="wait=120")
        assert deployed.status == 201, (deployed, platform.logs())
        here = result(await client.invoke("bytes", prefer="wait=120"), platform)
        assert here["files"] > 1000
        await platform.terminate("worker-1")

        here_too = {name: platform.env[name] for name in ("DATA_DIR", "SOCKET_DIR")} | {"DOCKER_HOST": ""}
        disk = platform.folder / "elsewhere"
        elsewhere = {"DATA_DIR": str(disk), "SOCKET_DIR": str(platform.folder / "t"), "DOCKER_HOST": engine.url}
        platform.change(WORKER_QUEUES="invoke", **elsewhere)
        platform.start("worker-2")
        assert result(await client.invoke("bytes", prefer="wait=120"), platform) == here

        # What an operator's hand removes comes back.
        await sandboxes_gone(engine)
        await asyncio.to_thread(shutil.rmtree, disk / "code")
        await docker(engine, "image", "rm", "--force", *await docker(engine, "image", "ls", "--quiet", "--no-trunc"))
        assert await docker(engine, "image", "ls", "--quiet") == []
        assert result(await client.invoke("bytes", prefer="wait=120"), platform) == here

        # With the store away, what is on this machine's disk runs on, and nothing is accepted that could not be kept.
        await sandboxes_gone(engine)
        s3.signal(signal.SIGSTOP)
        try:
            assert result(await client.invoke("bytes", prefer="wait=120"), platform) == here
            refused = await client.deploy("other", {"main.py": "def handler(event, context): return 1"})
            assert refused.status == 503, refused
        finally:
            s3.signal(signal.SIGCONT)
        # Built on the engine that has the base image by its name, called on the other.
        platform.change(**here_too | {"WORKER_QUEUES": "build"})
        platform.start("worker-3")
        deployed = await client.deploy("other", {"main.py": "def handler(event, context): return 1"})
        assert deployed.status == 201, (deployed, platform.logs())
        assert result(await client.invoke("other", prefer="wait=60"), platform) == 1
        await called_on_both(client)
        await platform.terminate("worker-2")


def result(answer: Answer, platform: Platform) -> Any:
    assert answer.status == 200, (answer, platform.logs())
    assert answer.json["success"], (answer, platform.logs())
    return answer.json["result"]


async def called_on_both(client: Client) -> None:
    """The records name two workers: the calls were not all served by one."""
    records = (await client.call("GET", "/api/functions/bytes/invocations")).json["items"]
    assert len(records) == 4
    assert len({record["worker_id"] for record in records}) == 2
    # The first worker had started a sandbox ahead when it had built the version. The second had none each time.
    assert [record["start_kind"] for record in reversed(records)] == ["warm", "cold", "cold", "cold"]


async def sandboxes_gone(engine: PrivateDockerd) -> None:
    async with asyncio.timeout(GONE_S):
        while await docker(engine, "ps", "--all", "--quiet"):
            await asyncio.sleep(0.1)


async def docker(engine: PrivateDockerd, *arguments: str) -> list[str]:
    """The words that the engine's command line prints."""
    process = await asyncio.create_subprocess_exec(
        "docker", "--host", engine.url, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, error = await process.communicate()
    assert process.returncode == 0, error
    return list(dict.fromkeys(said.decode().split()))
