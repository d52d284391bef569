"""The one tree of errors, and the tables that map it outwards.

::

    ContainerPubError
    ├── BadRequest            malformed input                        400
    ├── Unauthenticated       no or no valid credentials             401
    ├── Forbidden             a known caller who may not do this     403
    ├── NotFound              not there, or not yours                404
    ├── RequestTimeout        the request did not arrive in time     408
    ├── Conflict              the state does not allow it            409
    ├── TooLarge              over a named size limit                413
    ├── Invalid               well-formed but unacceptable content   422
    │   └── ArchiveRejected   an upload that breaks an archive rule
    ├── TooMany               over a quota or a rate                 429
    ├── Unavailable           a dependency is away                   503
    │   ├── ArtifactMissing   the artifact store does not have it
    │   ├── ArtifactCorrupt   its copy has another digest
    │   └── Unreadable        sealed with a key that this process lacks
    ├── WaitTimeout           the caller's wait ran out              504
    └── Misconfigured         settings or environment are wrong      (start-up)

Every error carries a stable ``code`` that clients may match on and a sentence that says what to do. A failed
*attempt* of a job is not an error but data: see ``shared.jobs.Failure``.
"""

from __future__ import annotations


class ContainerPubError(Exception):
    """Base of all errors this project raises on purpose.

    :param message: one sentence for a person, saying what is wrong and what to do.
    :param code: stable snake_case identifier; the class default when omitted.
    :param field: the input field at fault, as a dotted path, for validation errors.
    :param retry_after_s: seconds after which a retry makes sense, sent as ``Retry-After``.
    :param extra: further members of the problem document (JSON-serialisable).
    """

    default_code = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.retry_after_s = retry_after_s
        self.extra = extra or {}


class BadRequest(ContainerPubError):
    default_code = "bad_request"


class Unauthenticated(ContainerPubError):
    default_code = "unauthenticated"


class Forbidden(ContainerPubError):
    default_code = "forbidden"


class NotFound(ContainerPubError):
    default_code = "not_found"


class RequestTimeout(ContainerPubError):
    default_code = "request_timeout"


class Conflict(ContainerPubError):
    default_code = "conflict"


class TooLarge(ContainerPubError):
    default_code = "too_large"


class Invalid(ContainerPubError):
    default_code = "invalid"


class ArchiveRejected(Invalid):
    default_code = "archive_rejected"


class TooMany(ContainerPubError):
    default_code = "too_many"


class Unavailable(ContainerPubError):
    default_code = "dependency_down"


class ArtifactMissing(Unavailable):
    default_code = "artifact_missing"


class ArtifactCorrupt(Unavailable):
    default_code = "artifact_corrupt"


class Unreadable(Unavailable):
    default_code = "unreadable"


class WaitTimeout(ContainerPubError):
    default_code = "wait_timeout"


class Misconfigured(ContainerPubError):
    default_code = "misconfigured"


HTTP_STATUS: dict[type[ContainerPubError], int] = {
    BadRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    RequestTimeout: 408,
    Conflict: 409,
    TooLarge: 413,
    Invalid: 422,
    ArchiveRejected: 422,
    TooMany: 429,
    Unavailable: 503,
    ArtifactMissing: 503,
    ArtifactCorrupt: 503,
    Unreadable: 503,
    WaitTimeout: 504,
    Misconfigured: 500,
    ContainerPubError: 500,
}
"""Error class to HTTP status; a test proves it complete."""


def http_status(error: ContainerPubError) -> int:
    """The status of the nearest class of ``error`` in :data:`HTTP_STATUS`."""
    for cls in type(error).__mro__:
        if cls in HTTP_STATUS:
            return HTTP_STATUS[cls]
    return 500
