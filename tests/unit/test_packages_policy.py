"""A package.json and its lock reach npm only as packages of its registry."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from worker.build.packages import MAX_BYTES, Packages, parse_packages
from worker.build.plan import BuildRejected

CHECKSUM = "sha512-" + "A" * 86 + "=="


def manifest(**members: Any) -> dict[str, bytes]:
    return {"package.json": json.dumps(members).encode()}


def locked(entry: dict[str, Any] | None, place: str = "node_modules/a", **members: Any) -> dict[str, bytes]:
    root = {"dependencies": {"a": "^1.0.0"}}
    packages = {"": root} | ({} if entry is None else {place: entry})
    lock = {"lockfileVersion": 3, "packages": packages} | members
    return manifest(**root) | {"package-lock.json": json.dumps(lock).encode()}


def lock_of(files: dict[str, bytes]) -> dict[str, Any]:
    packages: dict[str, Any] = json.loads(parse_packages(files).files["package-lock.json"])["packages"]
    return packages


@pytest.mark.parametrize(
    "spec",
    ["1.2.3", "^1.2.3", "~1.2", ">=1 <3", "1.x", "*", "", "latest", "next-11", "1.0.0 - 2.0.0", "^1 || ^2",
     " >=1   <2 ", "=1.0", ">= 1.0.0",
     "1.2.3-beta.1+build.5", "v1.2.3", "npm:other@^1.0.0", "npm:@scope/other@latest", "npm:other"],
)  # fmt: skip
def test_ranges_tags_and_aliases_of_the_registry_are_accepted(spec: str) -> None:
    wanted = parse_packages(manifest(dependencies={"@scope/name": spec}))
    assert wanted
    assert json.loads(wanted.files["package.json"])["dependencies"] == {"@scope/name": spec}


@pytest.mark.parametrize(
    "spec",
    ["git+https://example.org/a.git", "git://example.org/a.git", "git+ssh://git@example.org/a.git", "user/repository",
     "github:user/repository", "gitlab:user/repository", "gist:1234", "https://example.org/a.tgz",
     "http://127.0.0.1/a.tgz", "file:../a", "file:a.tgz", "./a", "../a", "/etc", "~/a", "link:../a", "workspace:*",
     "portal:../a", "patch:a@1", "npm:https://example.org/a.tgz", "npm:a@file:../b", "npm:a@user/b", "a.tgz", "1.2.3\n",
     "1.2.3;x", "$other", 1, None, ["1"], {"a": "1"}, "x" * 300],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["dependencies", "optionalDependencies", "peerDependencies", "overrides"])
def test_whatever_leads_elsewhere_is_refused(kind: str, spec: object) -> None:
    if kind == "overrides" and spec in ("$other", {"a": "1"}):
        return
    with pytest.raises(BuildRejected, match=r"package\.json: ") as caught:
        parse_packages(manifest(**{kind: {"a": spec}}))
    assert caught.value.reason == "build_failed"
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/b", "@a", "@a/b/c", "/a", "a b", "a\n", ".a", "a@1", "containerpub"]
)
def test_a_name_that_is_none_or_ours_is_refused(name: str) -> None:
    with pytest.raises(BuildRejected):
        parse_packages(manifest(dependencies={name: "1.0.0"}))


def test_only_what_is_understood_reaches_npm() -> None:
    files = manifest(
        name="x",
        scripts={"preinstall": "curl evil"},
        config={"registry": "https://evil.example"},
        bin="x",
        publishConfig={"registry": "https://evil.example"},
        devDependencies={"a": "file:/etc"},
        dependencies={"b": "1"},
        engines={"npm": "0"},
        type="module",
    )
    assert json.loads(parse_packages(files).files["package.json"]) == {
        "name": "function",
        "version": "0.0.0",
        "private": True,
        "dependencies": {"b": "1"},
    }


@pytest.mark.parametrize("files", [{}, manifest(), manifest(dependencies={}), manifest(devDependencies={"a": "1"})])
def test_nothing_asked_for_is_nothing_to_install(files: dict[str, bytes]) -> None:
    assert not parse_packages(files)


def test_overrides_may_nest_and_refer() -> None:
    overrides = {"a": "1.0.0", "b@^2": {".": "2.1.0", "c": "$a"}}
    wanted = parse_packages(manifest(dependencies={"a": "1.0.0"}, overrides=overrides))
    assert json.loads(wanted.files["package.json"])["overrides"] == overrides


@pytest.mark.parametrize("overrides", ["x", {"a": {"b": {"..": "1"}}}, {"a@file:x": "1"}, {"a": {"b": "git://x"}}])
def test_overrides_that_lead_elsewhere_are_refused(overrides: object) -> None:
    with pytest.raises(BuildRejected, match="overrides"):
        parse_packages(manifest(overrides=overrides))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b'{"dependencies": []}', b'{"workspaces": ["a"]}', b"[" * 100_000, b"1" * 5000],
)
def test_a_manifest_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(BuildRejected):
        parse_packages({"package.json": content})


def test_sizes_are_bounded() -> None:
    for name, limit in MAX_BYTES.items():
        files = manifest(dependencies={"a": "1"}) | {name: b" " * (limit + 1)}
        with pytest.raises(BuildRejected, match="larger than"):
            parse_packages(files)


def test_places_that_packages_came_from_are_dropped_and_checksums_kept() -> None:
    resolved = "https://mirror.example/a/-/a-1.0.0.tgz"
    entry = {"version": "1.0.0", "resolved": resolved, "integrity": CHECKSUM, "license": "x", "scripts": {"a": "b"}}
    wanted = parse_packages(locked(entry))
    assert "mirror" not in "".join(wanted.files.values())
    assert lock_of(locked(entry))["node_modules/a"] == {"version": "1.0.0", "integrity": CHECKSUM}


def test_a_lock_keeps_what_npm_needs() -> None:
    entry = {
        "name": "other",
        "version": "1.0.0-rc.1",
        "integrity": CHECKSUM,
        "optional": True,
        "os": ["linux"],
        "dependencies": {"b": "npm:c@^1"},
        "peerDependencies": {"d": "*"},
        "peerDependenciesMeta": {"d": {"optional": True}},
    }
    assert lock_of(locked(entry))["node_modules/a"] == entry


def test_a_shrinkwrap_goes_before_a_lock_as_npm_has_it() -> None:
    files = locked({"version": "1.0.0", "integrity": CHECKSUM})
    files["npm-shrinkwrap.json"] = files["package-lock.json"].replace(b"1.0.0", b"1.5.0")
    assert lock_of(files)["node_modules/a"]["version"] == "1.5.0"


def test_packages_for_development_are_left_out_of_the_lock() -> None:
    assert lock_of(locked({"version": "1.0.0", "dev": True, "integrity": CHECKSUM})).keys() == {""}


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"version": "1.0.0"}, "node_modules/a"),
        ({"version": "1.0.0", "integrity": "none"}, "node_modules/a"),
        (
            {"version": "1.0.0", "integrity": CHECKSUM, "resolved": "git+ssh://git@example.org/a.git#1"},
            "node_modules/a",
        ),
        ({"version": "1.0.0", "integrity": CHECKSUM, "resolved": "file:../a.tgz"}, "node_modules/a"),
        ({"version": "1.0.0", "integrity": CHECKSUM, "resolved": "https://example.org/a.zip?x"}, "node_modules/a"),
        ({"version": "1.0.0", "integrity": CHECKSUM, "resolved": 1}, "node_modules/a"),
        ({"version": "file:../a", "integrity": CHECKSUM}, "node_modules/a"),
        ({"version": "^1", "integrity": CHECKSUM}, "node_modules/a"),
        ({"integrity": CHECKSUM}, "node_modules/a"),
        ({"resolved": "../a", "link": True}, "node_modules/a"),
        ({"version": "1.0.0", "integrity": CHECKSUM}, "../a"),
        ({"version": "1.0.0", "integrity": CHECKSUM}, "packages/a"),
        ({"version": "1.0.0", "integrity": CHECKSUM}, "node_modules/../a"),
        ({"version": "1.0.0", "integrity": CHECKSUM}, "node_modules/containerpub"),
        ({"version": "1.0.0", "integrity": CHECKSUM, "name": "../x"}, "node_modules/a"),
        ({"version": "1.0.0", "integrity": CHECKSUM, "dependencies": {"b": "git://x"}}, "node_modules/a"),
        ([], "node_modules/a"),
    ],
)
def test_a_lock_that_leads_elsewhere_is_refused(entry: Any, place: str) -> None:
    with pytest.raises(BuildRejected, match=r"package-lock\.json") as caught:
        parse_packages(locked(entry, place))
    assert caught.value.reason == "build_failed"


@pytest.mark.parametrize("members", [{"lockfileVersion": 1}, {"packages": []}, {"packages": {}}])
def test_a_lock_of_another_format_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(BuildRejected, match="npm 7"):
        parse_packages(locked(None, **members))


@pytest.mark.parametrize("part", ["1   ", "=1 ", ">=v1 - ", "~> 1 || ", "-", "1.x-a-", "a" * 8])
def test_a_long_refusal_is_prompt(part: str) -> None:
    started = time.process_time()
    with pytest.raises(BuildRejected):
        parse_packages(manifest(dependencies={"a": (part * 256)[:255] + "!"}))
    assert time.process_time() - started < 0.5


def test_what_was_accepted_is_accepted_again_unchanged() -> None:
    once = parse_packages(locked({"version": "1.0.0", "integrity": CHECKSUM, "dependencies": {"b": "1"}}))
    assert isinstance(once, Packages)
    again = parse_packages({name: text.encode() for name, text in once.files.items()})
    assert again.files == once.files


@pytest.mark.parametrize(
    "spec", [">=3.0.0 || insiders", "workspace:^", "^1.0.0 || >=2.0.0-alpha.0 || next", "github:a/b", 7]
)
def test_ranges_of_peers_in_a_lock_are_not_judged(spec: object) -> None:
    """What is installed for them has an entry of its own."""
    entry = {"version": "1.0.0", "integrity": CHECKSUM, "peerDependencies": {"b": spec, "c": "^1"}}
    assert lock_of(locked(entry))["node_modules/a"]["peerDependencies"] == {"c": "^1"}


@pytest.mark.parametrize("kind", ["dependencies", "optionalDependencies"])
def test_other_ranges_in_a_lock_are_judged(kind: str) -> None:
    with pytest.raises(BuildRejected, match="insiders"):
        parse_packages(locked({"version": "1.0.0", "integrity": CHECKSUM, kind: {"b": ">=3.0.0 || insiders"}}))


@pytest.mark.parametrize("spec", [">=1.2.3<2.0.0", ">=1 <2||>=3<4", "^1.0.0||^2.0.0", ">=1.2.3-rc.1 <2"])
def test_comparators_may_follow_each_other_without_a_space(spec: str) -> None:
    assert parse_packages(manifest(dependencies={"a": spec}))


@pytest.mark.parametrize("lock", ["pnpm-lock.yaml", "yarn.lock", "bun.lock", "bun.lockb"])
def test_a_lock_that_is_not_read_is_told(lock: str) -> None:
    (note,) = parse_packages(manifest(dependencies={"a": "1"}) | {lock: b"x"}).notes
    assert note.startswith(f"{lock} is not read, so packages are resolved anew; to keep versions, run npm install")
    assert parse_packages(locked({"version": "1.0.0", "integrity": CHECKSUM}) | {lock: b"x"}).notes == ()


@pytest.mark.parametrize("lock", ["pnpm-lock.yaml", "yarn.lock", "package-lock.json", "npm-shrinkwrap.json"])
def test_a_lock_without_a_manifest_is_refused_with_what_to_do(lock: str) -> None:
    with pytest.raises(BuildRejected, match=f"{lock} locks packages, but there is no package.json that asks for them"):
        parse_packages({lock: b"{}"})


def test_a_manifest_may_have_a_mark_of_utf_8() -> None:
    assert parse_packages({"package.json": b"\xef\xbb\xbf" + manifest(dependencies={"a": "1"})["package.json"]})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_manifest_in_another_encoding_is_refused_by_its_name(encoding: str) -> None:
    content = '{"dependencies": {"a": "1"}}'.encode(encoding)
    with pytest.raises(BuildRejected, match=rf"package\.json is {encoding[:6].upper()}.* text, .*: save it as UTF-8"):
        parse_packages({"package.json": content})


def test_a_manifest_of_latin_1_is_refused_with_what_to_do() -> None:
    with pytest.raises(BuildRejected, match=r"package\.json is not UTF-8 text \(at byte 9\): save it as UTF-8"):
        parse_packages({"package.json": b'{"name": "\xe9"}'.replace(b" ", b"")})
