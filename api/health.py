"""``python -m api.health``: exit status 0 if the API process on this machine is ready, else 1 and the reason."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping

from shared.errors import ContainerPubError
from shared.settings import load

_TIMEOUT_S = 4.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what HOST may say, not what is bound here


def problem(host: str, port: int) -> str | None:
    """Why the API at this address is not ready; ``None`` if it is."""
    connection = http.client.HTTPConnection(_ANY_ADDRESS.get(host, host), port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/api/ready")
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error}"
    finally:
        connection.close()
    return None if answer.status == 200 else body


def main(environment: Mapping[str, str]) -> int:
    try:
        settings = load(environment)
    except ContainerPubError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    found = problem(settings.host, settings.port)
    if found is not None:
        sys.stderr.write(f"{found}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(os.environ))
