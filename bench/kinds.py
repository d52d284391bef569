"""One function of every kind that starts in a way of its own, and the same by hand with ``docker run``."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from bench import engine
from bench.caller import Caller
from bench.figure import WrongAnswer
from bench.functions import HELLO, HELLO_BODY, HELLO_RESULT

BASE_IMAGES = f"dart={engine.BASE_IMAGE}"
"""No SDK is wanted: the command brings its program along."""

_BY_HAND_PYTHON = """
import json, sys
sys.path[:0] = ["/function", "/dependencies"]
import main
print(json.dumps(main.handler({"body": {"name": "Ada"}}, None)))
"""
_BY_HAND_NODE = """
const { handler } = await import('/function/main.mjs');
console.log(JSON.stringify(await handler({ body: { name: 'Ada' } })));
"""
_BY_HAND_WSGI = """
import io, sys
sys.path[:0] = ["/function", "/dependencies"]
from app import app
asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "name=Ada", "SERVER_PROTOCOL": "HTTP/1.1"}
asked |= {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
asked |= {"wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
print(b"".join(app(asked, lambda status, headers: None)).decode())
"""
_NUMPY = """
import numpy

def handler(event, context):
    letters = numpy.array([ord(letter) for letter in event["body"]["name"]])
    return {"greeting": f"Hello, {''.join(map(chr, letters.tolist()))}!"}
"""
_NODE = """
export function handler(event) {
  return { greeting: `Hello, ${event.body.name}!` };
}
"""
_SEMVER = "import semver from 'semver';\nif (semver.valid('1.2.3') === null) throw new Error('semver');\n"
_WSGI = """
import json

def app(environ, start_response):
    name = environ["QUERY_STRING"].removeprefix("name=")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"greeting": f"Hello, {name}!"}).encode()]
"""
_FLASK = """
import json

from flask import Flask, request

app = Flask(__name__)

@app.get("/")
def hello():
    return json.dumps({"greeting": f"Hello, {request.args['name']}!"})
"""
_COMMAND = """#!/bin/sh
printf '{"body": {"greeting": "Hello, Ada!"}}' > "$CONTAINERPUB_RESULT_FILE"
"""
_BY_HAND_COMMAND = "CONTAINERPUB_RESULT_FILE=/dev/stdout exec /function/bin/main"


async def _invoke(caller: Caller, name: str) -> None:
    await caller.invoke(name, HELLO_BODY, HELLO_RESULT)


async def _get(caller: Caller, name: str) -> None:
    event = {"method": "GET", "path": "/", "query": {"name": "Ada"}}
    answer = await caller.call("POST", f"/api/functions/{name}/invoke", 200, json=event)
    if not answer["success"] or answer["result"]["status"] != 200 or _said(answer["result"]["body"]) != HELLO_RESULT:
        raise WrongAnswer(f"{name} answered {answer!r}")


def _said(body: object) -> object:
    return json.loads(body) if isinstance(body, str) else body


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """:param by_hand: what ``docker run`` of its image runs to say the same. :param target_ms: of a cold start, p50."""

    name: str
    what: str
    files: Mapping[str, str]
    by_hand: tuple[str, ...]
    settings: Mapping[str, object] = field(default_factory=dict)
    ask: Callable[[Caller, str], Awaitable[None]] = _invoke
    target_ms: float | None = 60.0

    async def deploy(self, caller: Caller) -> None:
        await caller.deploy(self.name, self.files, **self.settings)

    async def call_ms(self, caller: Caller) -> float:
        started = time.perf_counter()
        await self.ask(caller, self.name)
        return 1000 * (time.perf_counter() - started)

    async def docker_run_ms(self, image: str) -> float:
        started = time.perf_counter()
        printed = (await engine.docker("run", "--rm", "--network", "none", image, *self.by_hand)).splitlines()[-1]
        took = 1000 * (time.perf_counter() - started)
        if json.loads(printed) not in (HELLO_RESULT, {"body": HELLO_RESULT}):
            raise WrongAnswer(f"docker run printed {printed!r}")
        return took


_PYTHON = ("python3", "-c", _BY_HAND_PYTHON)
_NODE_RUN = ("node", "--input-type=module", "--eval", _BY_HAND_NODE)
_WSGI_RUN = ("python3", "-c", _BY_HAND_WSGI)

PLAIN = (
    Kind(name="python", what="python", files={"main.py": HELLO}, by_hand=_PYTHON),
    Kind(name="node", what="node", files={"main.mjs": _NODE}, by_hand=_NODE_RUN, settings={"runtime": "node"}),
    Kind(
        name="web",
        what="web (bare WSGI)",
        files={"app.py": _WSGI},
        by_hand=_WSGI_RUN,
        settings={"runtime": "python-flask", "handler": "app:app"},
        ask=_get,
    ),
    Kind(
        name="command",
        what="command, a container a call",
        files={"bin/main": _COMMAND},
        by_hand=("sh", "-c", _BY_HAND_COMMAND),
        settings={"runtime": "dart", "handler": "bin/main.dart"},
        target_ms=None,  # no sandbox can be started before its call is known
    ),
)
"""Those that need nothing from elsewhere."""

WITH_PACKAGES = (
    Kind(
        name="python-numpy",
        what="python with numpy",
        files={"main.py": _NUMPY, "requirements.txt": "numpy==2.2.6\n"},
        by_hand=_PYTHON,
    ),
    Kind(
        name="node-semver",
        what="node with semver",
        files={"main.mjs": _SEMVER + _NODE, "package.json": '{"dependencies": {"semver": "7.5.4"}}'},
        by_hand=_NODE_RUN,
        settings={"runtime": "node"},
    ),
    Kind(
        name="web-flask",
        what="web with Flask",
        files={"app.py": _FLASK, "requirements.txt": "Flask==3.1.0\n"},
        by_hand=_WSGI_RUN,
        settings={"runtime": "python-flask", "handler": "app:app"},
        ask=_get,
    ),
)
"""Those whose packages come from an index, which has to be in reach."""
