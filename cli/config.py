"""The command's own file: which server, and the tokens of the account that is logged in there.

Tokens belong to the server they came from: they are stored with its URL and sent nowhere else, whatever ``API_URL``
says.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from cli.errors import UsageError

DEFAULT_API_URL = "http://127.0.0.1:8080"
FILE_NAME = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The file's content; ``None`` where nothing is known."""

    api_url: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server to talk to and as whom. ``from_environment``: the token is ``AUTH_TOKEN``, which nothing renews."""

    api_url: str
    access_token: str | None
    refresh_token: str | None
    email: str | None
    from_environment: bool


class ConfigFile:
    """``config.json`` in the user's folder: folder 0700, file 0600, replaced as a whole."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        chosen = variables.get("CONTAINERPUB_CONFIG_DIR")
        self._own_folder = not chosen
        self.folder = Path(chosen) if chosen else _base(variables, "XDG_CONFIG_HOME", ".config") / "containerpub"
        self.path = self.folder / FILE_NAME

    def load(self) -> Config:
        """What is stored; an empty :class:`Config` when there is no file. Raises :class:`UsageError`."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Config()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.path} cannot be read: {error}.") from error
        try:
            stored = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{self.path} is not JSON.", hint="Remove it and log in again.") from error
        members = stored if isinstance(stored, dict) else {}
        values = {name: members.get(name) for name in Config.__dataclass_fields__}
        if not isinstance(stored, dict) or any(not isinstance(v, str | None) for v in values.values()):
            raise UsageError(f"{self.path} holds something unexpected.", hint="Remove it and log in again.")
        return Config(**values)

    def save(self, config: Config) -> None:
        """Replace the file at once: a reader, or a crash half-way, sees the old content or the new. ``UsageError``."""
        temporary: str | None = None
        try:
            self._make_folder()
            descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{FILE_NAME}.")  # made with mode 0600
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(config), file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            temporary = None
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be written: {error}.", hint="Set CONTAINERPUB_CONFIG_DIR to a folder of yours."
            ) from error
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def lock_file(self) -> TextIO:
        """The open file that commands lock while they change the tokens. Raises :class:`UsageError`."""
        try:
            self._make_folder()
            return (self.folder / "config.lock").open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be written: {error}.") from error

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self._own_folder:  # one that the user chose may be anybody's: its mode stays
            self.folder.chmod(0o700)


def resolve(config: Config, variables: Mapping[str, str]) -> Target:
    """Environment before file before default. Raises :class:`UsageError` for a URL that cannot be one."""
    api_url = clean_url(variables.get("API_URL") or config.api_url or DEFAULT_API_URL)
    token = variables.get("AUTH_TOKEN")
    if token:
        return Target(api_url=api_url, access_token=token, refresh_token=None, email=None, from_environment=True)
    same_server = config.api_url is not None and clean_url(config.api_url) == api_url
    return Target(
        api_url=api_url,
        access_token=config.access_token if same_server else None,
        refresh_token=config.refresh_token if same_server else None,
        email=config.email,
        from_environment=False,
    )


def clean_url(url: str) -> str:
    """``url`` without a trailing slash, or :class:`UsageError`."""
    hint = f"Set API_URL to something like {DEFAULT_API_URL}."
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port out of range shows up here only
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}.", hint=hint) from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is not an http(s) URL of a server.", hint=hint)
    if parts.username is not None or parts.password is not None:
        raise UsageError("The server's URL must not carry a user or a password.", hint="Use `containerpub login`.")
    return url.rstrip("/")


def data_folder(variables: Mapping[str, str]) -> Path:
    """Where an embedded server keeps its data unless told otherwise: the platform's folder for that."""
    if sys.platform == "darwin":
        return _home(variables) / "Library" / "Application Support" / "containerpub"
    if sys.platform == "win32":
        return _base(variables, "LOCALAPPDATA", "AppData/Local") / "containerpub"
    return _base(variables, "XDG_DATA_HOME", ".local/share") / "containerpub"


def _base(variables: Mapping[str, str], name: str, below_home: str) -> Path:
    path = Path(variables.get(name, ""))
    return path if path.is_absolute() else _home(variables) / below_home


def _home(variables: Mapping[str, str]) -> Path:
    return Path(variables["HOME"]) if variables.get("HOME") else Path.home()
