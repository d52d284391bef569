"""Sealing: without a key, the payloads, results and logs in Redis and Postgres cannot be read.

A sealed text is the byte ``01``, the length of the key's id, the id, a salt of 16 bytes, a nonce of 12, and the output
of AES-256-GCM. No JSON text begins with that byte, so a text that was never sealed is recognised and read as it is. The
cipher's key is HMAC-SHA256 of the configured key and the salt: each process draws a salt of its own, and a new one long
before two random nonces under one key could be equal. The job's id and the :class:`Part` are authenticated along, so
that no sealed text can be moved to another job or another part. In columns of text, sealed texts stand in base64.
"""

from __future__ import annotations

import binascii
import hmac
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import Unreadable

MARK = b"\x01"
KEY_BYTES = 32
NOT_SEALED = "what functions are sent and answer is not sealed: ENCRYPTION_KEYS is empty"
_SALT_BYTES = 16
_NONCE_BYTES = 12
_SEALS_A_SALT = 2**24
_CIPHERS_KEPT = 4096
_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")


def new_key() -> str:
    """A key as ``ENCRYPTION_KEYS`` takes it, named after the day."""
    return f"{datetime.now(UTC):%Y-%m-%d}:{b64encode(os.urandom(KEY_BYTES)).decode('ascii')}"


class Part(StrEnum):
    """Which part of its job a text is."""

    PAYLOAD = "payload"
    RESULT = "result"
    ERROR = "error"
    REQUEST = "request"
    LOG = "log"
    PROGRESS = "progress"
    EVENT = "event"
    SIGNING = "webhook secret"  # belongs to a user, and is bound to the user's id


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKey:
    """``head`` is how all texts begin that this key sealed."""

    id: str
    secret: bytes = field(repr=False)
    ciphers: dict[bytes, AESGCM] = field(default_factory=dict, repr=False, compare=False)

    @property
    def head(self) -> bytes:
        return MARK + bytes([len(self.id)]) + self.id.encode("ascii")

    def cipher(self, salt: bytes) -> AESGCM:
        cipher = self.ciphers.get(salt)
        if cipher is None:
            if len(self.ciphers) >= _CIPHERS_KEPT:
                self.ciphers.clear()
            cipher = self.ciphers[salt] = AESGCM(hmac.digest(self.secret, salt, "sha256"))
        return cipher


class Keyring:
    """The keys of a process: the first seals, all open. Without keys nothing is sealed, and nothing sealed is read."""

    def __init__(self, keys: Sequence[SealingKey] = ()) -> None:
        self._keys = {key.id: key for key in keys}
        self._first = keys[0] if keys else None
        self._left = 0  # seals until the next salt
        # The beginning of the next text, and its cipher: one reference, since threads seal too.
        self._current: tuple[bytes, AESGCM]

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """The keys in ``id:base64`` parts, separated by commas or, as in a file, line ends.

        :raises ValueError: saying what is wrong with which part, without the key.
        """
        keys: dict[str, SealingKey] = {}
        for number, part in enumerate(filter(None, (part.strip() for part in re.split("[,\n]", text))), 1):
            name, colon, encoded = part.partition(":")
            if not colon or not _ID.fullmatch(name):
                raise ValueError(
                    f"key {number} must be written as id:base64, its id of up to 32 letters, digits, '.', '_' and '-'"
                )
            try:
                secret = b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ValueError(f'key {number} ("{name}") is not base64') from None
            if len(secret) != KEY_BYTES:
                raise ValueError(f'key {number} ("{name}") has {len(secret)} bytes and must have {KEY_BYTES}')
            if name in keys:
                raise ValueError(f'two keys are named "{name}"')
            keys[name] = SealingKey(id=name, secret=secret)
        return cls(tuple(keys.values()))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def seals(self) -> bool:
        """Whether there is a key to seal with."""
        return self._first is not None

    @property
    def first_head(self) -> bytes:
        """How all texts begin that the first key sealed."""
        return b"" if self._first is None else self._first.head

    def seal(self, text: bytes, job: UUID, part: Part) -> bytes:
        """``text`` sealed with the first key; unchanged if there is no key or ``text`` is empty."""
        if self._first is None or not text:
            return text
        if self._left <= 0:
            salt = os.urandom(_SALT_BYTES)
            self._current = (self._first.head + salt, self._first.cipher(salt))
            self._left = _SEALS_A_SALT
        self._left -= 1
        head, cipher = self._current
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + cipher.encrypt(nonce, text, _bound_to(job, part))

    def open(self, text: bytes, job: UUID, part: Part) -> bytes:
        """The text that was sealed; ``text`` itself if it never was.

        :raises Unreadable: if its key is not there, or ``text`` was not sealed as this part of this job.
        """
        if not is_sealed(text):
            return text
        salt_at = 2 + text[1] if len(text) > 1 else 0
        nonce_at = salt_at + _SALT_BYTES
        name = text[2:salt_at].decode("ascii", "backslashreplace")
        key = self._keys.get(name)
        if key is None:
            raise Unreadable(f'It is sealed with the key "{name}", which is not among ENCRYPTION_KEYS.')
        nonce, rest = text[nonce_at : nonce_at + _NONCE_BYTES], text[nonce_at + _NONCE_BYTES :]
        try:
            return key.cipher(text[salt_at:nonce_at]).decrypt(nonce, rest, _bound_to(job, part))
        except (InvalidTag, ValueError):
            raise Unreadable(f'It is not what was sealed with the key "{name}" as the {part} of this job.') from None

    def reseal(self, text: bytes, job: UUID, part: Part) -> bytes:
        """``text`` sealed with the first key, whatever it was before. :raises Unreadable: as :meth:`open`."""
        return self.seal(self.open(text, job, part), job, part)

    def seal_column(self, text: str, job: UUID, part: Part) -> str:
        """For a column of text."""
        return to_column(self.seal(text.encode("utf-8", "backslashreplace"), job, part))

    def open_column(self, text: str, job: UUID, part: Part) -> str:
        """What :meth:`seal_column` sealed. :raises Unreadable: as :meth:`open`."""
        return self.open(from_column(text), job, part).decode()

    def shown(self, text: str, job: UUID, part: Part) -> str:
        """As :meth:`open_column`; for a text that cannot be opened, a sentence that says so."""
        try:
            return self.open_column(text, job, part)
        except Unreadable as error:
            return error.message


def is_sealed(text: bytes) -> bool:
    return text[:1] == MARK


def to_column(text: bytes) -> str:
    """A text that may be sealed, for a column of text."""
    return b64encode(text).decode("ascii") if is_sealed(text) else text.decode("utf-8", "backslashreplace")


def from_column(text: str) -> bytes:
    """The reverse of :func:`to_column`, for a column that holds JSON texts, or ones known to be sealed."""
    if not text.startswith("A"):  # MARK in base64; no JSON text begins with a capital letter
        return text.encode("utf-8", "backslashreplace")
    try:
        return b64decode(text, validate=True)
    except binascii.Error:
        return text.encode("utf-8", "backslashreplace")


def _bound_to(job: UUID, part: Part) -> bytes:
    return job.bytes + part.encode("ascii")
