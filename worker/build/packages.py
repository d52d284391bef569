"""What a ``package.json`` and its lock may say.

npm gets files that are written anew from the members which this module knows, so that no other member has an effect: no
scripts, no workspaces, no settings. Every package has to come from the registry. A lock has the addresses that packages
were fetched from. This module drops them, so that npm looks a package up by name and version and checks it against the
lock's checksum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.build.encoding import encoding_of, read_text
from worker.build.plan import BuildRejected

MANIFEST = "package.json"
LOCKS = ("npm-shrinkwrap.json", "package-lock.json")  # in npm's own order
UNREAD_LOCKS = ("pnpm-lock.yaml", "yarn.lock", "bun.lock", "bun.lockb")
MAX_BYTES = {MANIFEST: 256 * 1024} | dict.fromkeys(LOCKS, 4 * 1024 * 1024)
MAX_PACKAGES = 5_000
OURS = "containerpub"

_NAME = r"(?:@[a-z0-9~_-][a-z0-9._~-]*/)?[a-zA-Z0-9~_-][a-zA-Z0-9._~-]*"
_TAG = r"[A-Za-z][A-Za-z0-9._-]*"
_VERSION = r"v?(?:[0-9]+|[xX*])(?:\.(?:[0-9]+|[xX*])){0,2}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
# Each text has one way to match, or refusing a long one could take forever; so runs of spaces are made one before.
_COMPARATOR = rf"(?:~>|[~^]|[<>]=?|=)? ?{_VERSION}"
# Comparators may follow each other without a space.
_SET = rf"{_COMPARATOR}(?: (?:- )?{_COMPARATOR}|(?=[<>=~^]){_COMPARATOR})*"
_RANGE = re.compile(rf" ?(?:{_SET}(?: ?\|\| ?{_SET})*)? ?", re.ASCII)
_SPACES = re.compile(r" +")
_FILE = re.compile(r".*\.(?:tgz|tar|tar\.gz)", re.ASCII | re.IGNORECASE)  # npm takes these for files
_TAGGED = re.compile(_TAG, re.ASCII)
_PACKAGE = re.compile(_NAME, re.ASCII)
_ALIAS = re.compile(rf"npm:({_NAME})(?:@(.*))?", re.ASCII)
_SELECTED = re.compile(rf"({_NAME})(?:@(.*))?", re.ASCII)
_REFERENCE = re.compile(rf"\$({_NAME})", re.ASCII)
_EXACT = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?", re.ASCII)
_INTEGRITY = re.compile(
    r"(?:sha(?:1|256|384|512)-[A-Za-z0-9+/=]{20,100})(?:\s+sha(?:1|256|384|512)-[A-Za-z0-9+/=]{20,100})*"
)
_PLACE = re.compile(rf"(?:node_modules/{_NAME}/)*node_modules/({_NAME})", re.ASCII)
_FETCHED = re.compile(r"https?://[^/\s]+/(?:[^\s?#]*/)?(?:[^\s/?#]+)\.tgz", re.ASCII)

_ASKED = ("dependencies", "optionalDependencies", "peerDependencies")
_FLAGS = ("optional", "devOptional", "peer", "inBundle", "hasInstallScript")
_STRINGS = ("os", "cpu", "libc", "bundleDependencies")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Accepted packages: a ``package.json`` and, if there is one, its lock, both as npm will read them."""

    manifest: Mapping[str, Any]
    lock: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> Mapping[str, str]:
        texts = {MANIFEST: _text(self.manifest)}
        if self.lock is not None:
            texts["package-lock.json"] = _text(self.lock)
        return texts

    def __bool__(self) -> bool:
        return any(self.manifest.get(kind) for kind in _ASKED)


def parse_packages(files: Mapping[str, bytes]) -> Packages:
    """Read a ``package.json`` and its lock, given by name, by our own, narrower grammar.

    :raises BuildRejected: ``build_failed``, naming the member, when one refers to anything but the registry.
    """
    unread = [name for name in UNREAD_LOCKS if name in files]
    if MANIFEST not in files and (unread or any(name in files for name in LOCKS)):
        locking = next(one for one in (*LOCKS, *unread) if one in files)
        raise _rejected(f"{locking} locks packages, but there is no {MANIFEST} that asks for them: add it.")
    manifest = _object(files.get(MANIFEST, b"{}"), MANIFEST)
    if manifest.get("workspaces"):
        raise _rejected(f"{MANIFEST}: workspaces are not supported; deploy one package.")
    wanted = _asked(manifest, MANIFEST, ours=True)
    if meta := _peers(manifest):
        wanted["peerDependenciesMeta"] = meta
    if overrides := manifest.get("overrides"):
        wanted["overrides"] = _overrides(overrides, f"{MANIFEST}: overrides", 0)
    name = next((name for name in LOCKS if name in files), None)
    lock = None if name is None else _lock(_object(files[name], name), name)
    notes = tuple(
        f"{one} is not read, so packages are resolved anew; to keep versions, run npm install --package-lock-only"
        for one in (unread if lock is None else ())
    )
    return Packages(manifest={"name": "function", "version": "0.0.0", "private": True} | wanted, lock=lock, notes=notes)


def _object(content: bytes, name: str) -> dict[str, Any]:
    if len(content) > MAX_BYTES[name]:
        raise _rejected(f"{name} is larger than {MAX_BYTES[name] // 1024} KiB.")
    if encoding_of(content) not in (None, "UTF-8"):
        raise _rejected(f"{name} is {encoding_of(content)} text, which Node.js does not read: save it as UTF-8.")
    try:
        value = json.loads(read_text(content))
    except UnicodeDecodeError as error:
        raise _rejected(f"{name} is not UTF-8 text (at byte {error.start}): save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise _rejected(f"{name} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise _rejected(f"{name} is not a JSON object.")
    return value


def _asked(table: Mapping[str, Any], where: str, *, ours: bool) -> dict[str, Any]:
    """The dependencies that ``table`` lists. ``ours`` says that it is the function's own list."""
    accepted: dict[str, Any] = {}
    for kind in _ASKED:
        listed = table.get(kind)
        if listed is None:
            continue
        if not isinstance(listed, dict):
            raise _rejected(f"{where}: {kind} is not an object.")
        taken: dict[str, Any] = {}
        for name, spec in listed.items():
            at = f"{where}: {kind}: {_shown(name)}"
            if kind == "peerDependencies" and not ours and not (_PACKAGE.fullmatch(name) and _is_accepted(spec)):
                continue  # what is installed for it stands in the lock
            if not _PACKAGE.fullmatch(name) or len(name) > 214:
                raise _rejected(f"{at} is not the name of a package.")
            if ours and name == OURS:
                raise _rejected(f"{at} is the platform's own package, which every sandbox has: leave it out.")
            _accept(spec, at)
            taken[name] = spec
        accepted[kind] = taken
    return accepted


def _is_accepted(spec: object) -> bool:
    if not isinstance(spec, str) or len(spec) > 256:
        return False
    alias = _ALIAS.fullmatch(spec)
    return _is_version(spec if alias is None else alias[2] or "")


def _accept(spec: object, at: str) -> None:
    if _is_accepted(spec):
        return
    raise _rejected(
        f"{at}: {_shown(spec)} is not a version of the registry; "
        "only ranges such as '1.2.3', '^1.2' or '>=1 <3', tags and 'npm:name@range' are allowed."
    )


def _is_version(spec: str) -> bool:
    if _TAGGED.fullmatch(spec):
        return not _FILE.fullmatch(spec)
    return _RANGE.fullmatch(_SPACES.sub(" ", spec)) is not None


def _overrides(table: object, at: str, depth: int) -> dict[str, Any]:
    if not isinstance(table, dict) or depth > 8:
        raise _rejected(f"{at} is not an object of versions.")
    for name, value in table.items():
        selected = _SELECTED.fullmatch(name)
        if name != "." and (selected is None or not _is_version(selected[2] or "")):
            raise _rejected(f"{at}: {_shown(name)} is not the name of a package.")
        if isinstance(value, dict):
            _overrides(value, f"{at}: {_shown(name)}", depth + 1)
        elif not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
            _accept(value, f"{at}: {_shown(name)}")
    return table


def _lock(lock: Mapping[str, Any], name: str) -> dict[str, Any]:
    packages = lock.get("packages")
    if (
        lock.get("lockfileVersion") not in (2, 3)
        or not isinstance(packages, dict)
        or not isinstance(packages.get(""), dict)
    ):
        raise _rejected(f"{name} has a format that is not supported: make it anew with npm 7 or later.")
    if len(packages) > MAX_PACKAGES:
        raise _rejected(f"{name} has more than {MAX_PACKAGES} packages.")
    return {
        "name": "function",
        "version": "0.0.0",
        "lockfileVersion": 3,
        "requires": True,
        "packages": {
            "": {"name": "function", "version": "0.0.0"} | _asked(packages[""], f"{name}: the project", ours=True)
        }
        | dict(_locked(packages, name)),
    }


def _locked(packages: Mapping[str, Any], lock: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, entry in packages.items():
        if place == "":
            continue
        at = f"{lock}: {_shown(place)}"
        located = _PLACE.fullmatch(place)
        if located is None or not isinstance(entry, dict) or entry.get("link") or len(place) > 1000:
            raise _rejected(f"{at} is not a package of the registry.")
        if located[0] == f"node_modules/{OURS}":
            raise _rejected(f"{at} is the platform's own package, which every sandbox has: leave it out.")
        if entry.get("dev") is True:
            continue
        yield place, _entry(entry, at)


def _entry(entry: Mapping[str, Any], at: str) -> dict[str, Any]:
    version, integrity, resolved = entry.get("version"), entry.get("integrity"), entry.get("resolved")
    if not isinstance(version, str) or not _EXACT.fullmatch(version):
        raise _rejected(f"{at} has no version of the registry.")
    if resolved is not None and not (isinstance(resolved, str) and _FETCHED.fullmatch(resolved)):
        raise _rejected(f"{at}: it was resolved to {_shown(resolved)}, which is not the registry.")
    accepted: dict[str, Any] = {"version": version}
    if (name := entry.get("name")) is not None:
        if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
            raise _rejected(f"{at}: {_shown(name)} is not the name of a package.")
        accepted["name"] = name
    if isinstance(integrity, str) and _INTEGRITY.fullmatch(integrity):
        accepted["integrity"] = integrity
    elif entry.get("inBundle") is not True:
        # looked up by name: without a checksum it could be another package than the one that was locked
        raise _rejected(f"{at} has no checksum (integrity): make the lock anew.")
    accepted |= _asked(entry, at, ours=False)
    if meta := _peers(entry):
        accepted["peerDependenciesMeta"] = meta
    accepted |= {flag: True for flag in _FLAGS if entry.get(flag) is True}
    for key in _STRINGS:
        values = entry.get(key)
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            accepted[key] = values
    return accepted


def _peers(table: Mapping[str, Any]) -> dict[str, Any]:
    meta = table.get("peerDependenciesMeta")
    if not isinstance(meta, dict):
        return {}
    return {
        name: {"optional": True}
        for name, told in meta.items()
        if _PACKAGE.fullmatch(name) and isinstance(told, dict) and told.get("optional") is True
    }


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _rejected(message: str) -> BuildRejected:
    return BuildRejected("build_failed", message)
