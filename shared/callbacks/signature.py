"""Signatures of callbacks, as Standard Webhooks has them: https://www.standardwebhooks.com."""

from __future__ import annotations

import hmac
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A new secret, in the format of Standard Webhooks."""
    return _PREFIX + b64encode(os.urandom(_SECRET_BYTES)).decode("ascii")


def signed_headers(identifier: str, timestamp: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers for ``body``, with one signature for each of ``secrets``: a receiver checks by the one that it holds.

    :param timestamp: of this try, in Unix seconds.
    """
    signed = b"%b.%d.%b" % (identifier.encode(), timestamp, body)
    signatures = (
        b64encode(hmac.digest(b64decode(secret.removeprefix(_PREFIX)), signed, "sha256")).decode("ascii")
        for secret in secrets
    )
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
