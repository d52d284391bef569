"""What a credential may be used for. A session, which a user opened by logging in, may be used for everything."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    READ = "read"  # look at functions, jobs, records
    INVOKE = "invoke"  # run functions; cancel and repeat jobs
    DEPLOY = "deploy"  # make, change, stop and delete functions
    ADMIN = "admin"  # the account itself and its secrets


ALL_SCOPES = frozenset(Scope)
