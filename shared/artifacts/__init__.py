"""Where artifacts are kept: content-addressed files, in a local folder or in an S3 bucket."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shared.artifacts.local import LocalStore
from shared.artifacts.store import ArtifactStore, artifact_key, layer_key, payload_name, payload_owner
from shared.errors import ArtifactCorrupt, ArtifactMissing
from shared.settings import Settings

__all__ = [
    "ArtifactCorrupt",
    "ArtifactMissing",
    "ArtifactStore",
    "LocalStore",
    "StoreConfig",
    "artifact_key",
    "layer_key",
    "open_store",
    "payload_name",
    "payload_owner",
    "store_config",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Which store, and how to reach it. S3 is used when ``s3_bucket_name`` is set, else ``functions_dir``.

    The ``s3_*`` fields are those of :class:`shared.artifacts.s3.S3Store`; ``timeout_s`` bounds every single call.
    """

    functions_dir: Path
    s3_bucket_name: str | None = None
    s3_endpoint: str | None = None
    s3_access_key_id: str | None = None
    s3_secret_access_key: str | None = field(default=None, repr=False)
    s3_session_token: str | None = field(default=None, repr=False)
    s3_region: str | None = None
    s3_account_id: str | None = None
    timeout_s: float = 30.0


async def open_store(config: StoreConfig) -> ArtifactStore:
    """The store that ``config`` names, ready for use; it is not contacted yet (see :meth:`ArtifactStore.check`).

    Raises :class:`shared.errors.Misconfigured` or, if a local folder cannot be made, ``Unavailable``.
    """
    if not config.s3_bucket_name:
        local = LocalStore(config.functions_dir, timeout_s=config.timeout_s)
        await local.open()
        return local
    # Amazon's library takes a third of a second to load and some 20 MB: only processes that use S3 load it.
    from shared.artifacts.s3 import S3Store

    remote = S3Store(
        bucket=config.s3_bucket_name,
        endpoint=config.s3_endpoint,
        access_key_id=config.s3_access_key_id,
        secret_access_key=config.s3_secret_access_key,
        session_token=config.s3_session_token,
        region=config.s3_region,
        account_id=config.s3_account_id,
        timeout_s=config.timeout_s,
    )
    await remote.open()
    return remote


def store_config(settings: Settings) -> StoreConfig:
    """The store that a process's settings name."""
    return StoreConfig(
        functions_dir=settings.functions_dir,
        s3_bucket_name=settings.s3_bucket_name or None,
        s3_endpoint=settings.s3_endpoint or None,
        s3_access_key_id=settings.s3_access_key_id or None,
        s3_secret_access_key=settings.s3_secret_access_key.get_secret_value() or None,
        s3_session_token=settings.s3_session_token.get_secret_value() or None,
        s3_region=settings.s3_region or None,
        s3_account_id=settings.s3_account_id or None,
        timeout_s=settings.artifact_timeout_seconds,
    )
