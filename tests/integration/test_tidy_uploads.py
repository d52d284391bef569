"""Uploads as systems and tools make them are deployed as the project that they hold."""

from __future__ import annotations

import codecs
import gzip
import io
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client import Client, pack
from tests.deployment import Platform

APPLE_DOUBLE = bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(60)
MAIN = b"def handler(event, context):\n    return 7\n"
PROJECT = b'runtime = "python"\r\nhandler = "main:handler"\r\nmemory_mb = 64\r\n'


@pytest.fixture
async def client(shared_platform: Platform) -> AsyncIterator[Client]:
    async with shared_platform.client() as client:
        yield await client.register()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # the constructor makes slashes of backslashes
            archive.writestr(info, content)
    return out.getvalue()


async def deployed(client: Client, archive: bytes, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """The version that an archive makes, once it has served a call."""
    answer = await client.deploy("tidy", archive=archive, settings=settings)
    assert answer.status == 201, answer
    assert (await client.invoke("tidy")).json["result"] == 7
    version = (await client.call("GET", f"/api/functions/tidy/versions/{answer.json['version']}")).json
    assert version["status"] == "active"
    return dict(version)


@pytest.mark.parametrize("runtime", ["python", "python-flask"])
async def test_files_of_macos_do_not_keep_a_function_from_its_deploy(client: Client, runtime: str) -> None:
    web = b'def app(environ, start):\n    start("200 OK", [])\n    return [b"7"]\n'
    files = {"main.py": MAIN, "__MACOSX/._main.py": APPLE_DOUBLE, "._main.py": APPLE_DOUBLE, "lib/._x.py": APPLE_DOUBLE}
    handler = "main:handler"
    if runtime == "python-flask":
        files, handler = files | {"app.py": web}, "app:app"
    for archive in (zipped(files), pack(dict(files))):
        answer = await client.deploy("apple", archive=archive, settings={"runtime": runtime, "handler": handler})
        assert answer.status in (200, 201), answer
    version = (await client.call("GET", "/api/functions/apple/versions/1")).json
    assert version["build_log"].startswith("archive: left out what a tool added to it: ")


async def test_a_hosts_download_is_unwrapped_and_the_build_log_says_so(client: Client) -> None:
    files = {"repo-main/main.py": MAIN, "repo-main/containerpub.toml": PROJECT}
    version = await deployed(client, zipped(files))
    assert version["build_log"].startswith("archive: everything is in the folder repo-main;")
    assert version["settings"]["memory_mb"] == 64
    again = await client.deploy("tidy", archive=pack({"main.py": MAIN, "containerpub.toml": PROJECT}))
    assert again.status == 200, "the same project without the folder is the same version"


async def test_a_package_that_the_handler_names_is_no_folder_around_the_project(client: Client) -> None:
    version = await deployed(client, pack({"app/main.py": MAIN}), {"handler": "app.main:handler"})
    assert "everything is in the folder" not in version["build_log"]


async def test_names_with_backslashes_are_folders(client: Client) -> None:
    main = b"from lib.deep import seven\ndef handler(event, context):\n    return seven.SEVEN\n"
    await deployed(client, zipped({"main.py": main, "lib\\deep\\seven.py": b"SEVEN = 7\n"}))


async def test_a_gzip_file_of_two_members_is_one(client: Client) -> None:
    tar = gzip.decompress(pack({"main.py": MAIN}))
    await deployed(client, gzip.compress(tar[:700]) + gzip.compress(tar[700:]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("containerpub.toml", codecs.BOM_UTF8 + PROJECT),
        ("containerpub.toml", codecs.BOM_UTF16_LE + PROJECT.decode().encode("utf-16-le")),
        ("function.json", codecs.BOM_UTF8 + b'{"memory_mb": 64}'),
        ("function.json", codecs.BOM_UTF16_BE + '{"memory_mb": 64}'.encode("utf-16-be")),
    ],
)
async def test_a_project_file_is_read_whatever_an_editor_adds(client: Client, name: str, content: bytes) -> None:
    version = await deployed(client, pack({"main.py": MAIN, name: content}))
    assert version["settings"]["memory_mb"] == 64


@pytest.mark.parametrize("name", ["containerpub.toml", "function.json"])
async def test_a_project_file_in_another_encoding_is_refused_with_what_to_do(client: Client, name: str) -> None:
    answer = await client.deploy("tidy", archive=pack({"main.py": MAIN, name: "# größe\n".encode("latin-1")}))
    assert (answer.status, answer.json["code"], answer.json["field"]) == (422, "invalid_settings", name)
    assert "0xF6 in line 1" in answer.json["detail"]
    assert "Save it as UTF-8." in answer.json["detail"]


async def test_an_upload_that_is_too_large_is_told_the_limit_and_what_to_do(client: Client) -> None:
    body = io.BytesIO(b'{"body": "' + b"x" * 7_000_000 + b'"}')
    answer = await client.call("POST", "/api/functions/tidy/invoke", data=body)
    assert (answer.status, answer.json["code"], answer.json["max_bytes"]) == (413, "too_large", 6_000_000)
    assert "at most 6000000 bytes" in answer.json["detail"]
    assert "a store that the function can read" in answer.json["detail"]
