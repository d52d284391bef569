"""Payloads and results of jobs: sealed as they are stored and opened as they are read; large ones in the artifact
store.

A text of more than ``INLINE_BYTES`` is kept in the artifact store, encrypted under a key of its own. In its place
stands a reference, sealed like any other text: the byte ``02``, the length of that key, the key and the text's name.
So a change of keys seals references anew and leaves the store alone. A text in the store belongs to one job. It stays
as long as the job's column has the reference; afterwards a sweep deletes it (``worker/consume/payload_sweep.py``).
"""

from __future__ import annotations

import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.artifacts import ArtifactStore, payload_name, payload_owner
from shared.errors import Unreadable
from shared.sealing import Keyring, Part

REFERENCE = b"\x02"
_KEY_BYTES = 32
_NONCE = bytes(12)  # each key encrypts one text


class PayloadStore:
    """:param inline_bytes: the most that is kept in a row or a message."""

    def __init__(self, keyring: Keyring, store: ArtifactStore, *, inline_bytes: int) -> None:
        self.keyring = keyring
        self._store = store
        self._inline_bytes = inline_bytes

    async def put(self, text: bytes, job: UUID, part: Part) -> bytes:
        """Seal ``text``, and store it if it is large; the bytes to keep in its place.

        :raises Unavailable: if the artifact store does not take it.
        """
        if len(text) <= self._inline_bytes:
            return self.keyring.seal(text, job, part)
        name, key = payload_name(job, part), b""
        if self.keyring.seals:
            key = os.urandom(_KEY_BYTES)
            text = AESGCM(key).encrypt(_NONCE, text, name.encode("ascii"))
        await self._store.write_text(name, text)
        return self.keyring.seal(REFERENCE + bytes([len(key)]) + key + name.encode("ascii"), job, part)

    async def get(self, kept: bytes, job: UUID, part: Part) -> bytes:
        """The text for which :meth:`put` returned ``kept``.

        :raises Unreadable: if it cannot be opened, or is of another job. :raises ArtifactMissing:
        :raises Unavailable: if the artifact store does not give it.
        """
        text = self.keyring.open(kept, job, part)
        if not is_reference(text):
            return text
        key, name = text[2 : 2 + text[1]], text[2 + text[1] :].decode("ascii", "replace")
        try:
            owner = payload_owner(name)
        except ValueError:
            owner = None
        if owner != (job, part):
            raise Unreadable(f"The reference does not name the {part} of this job.")
        content = await self._store.read_text(name)
        try:
            return AESGCM(key).decrypt(_NONCE, content, name.encode("ascii")) if key else content
        except (InvalidTag, ValueError):
            raise Unreadable(f"The text in the artifact store is not the {part} of this job.") from None


def is_reference(text: bytes) -> bool:
    """Whether an opened text is a reference to one in the artifact store."""
    return len(text) > 1 and text[:1] == REFERENCE
