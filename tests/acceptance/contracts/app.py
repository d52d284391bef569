"""Applications without a framework, for tests of the contract "web"."""

import asyncio
import base64
import contextlib
import functools
import json
import multiprocessing
import sys


def wsgi(environ, start_response):
    """Tells what it was asked."""
    told = {name: value for name, value in environ.items() if isinstance(value, str)}
    told["body"] = base64.b64encode(environ["wsgi.input"].read()).decode()
    told["job_id"] = environ["containerpub.context"].job_id
    start_response("201 Made", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]


def cookies(environ, start_response):
    start_response("200 OK", [("Set-Cookie", "a=1"), ("X-One", "1"), ("set-cookie", "b=2")])
    return []


def binary(environ, start_response):
    start_response("200 OK", [("Content-Type", "image/gif")])
    return [b"GIF89a", b"\xff\x00"]


def streamed(environ, start_response):
    write = start_response("200 OK", [])
    write(b"first ")

    class Chunks:
        def __iter__(self):
            yield "zwölf ".encode()[:3]
            yield "zwölf ".encode()[3:]
            yield b"last"

        def close(self):
            print("closed")

    return Chunks()


def endless(environ, start_response):
    start_response("200 OK", [])
    while True:
        yield b"x" * 65536


def broken(environ, start_response):
    raise LookupError("no answer")


def silent(environ, start_response):
    return []


def odd_status(environ, start_response):
    start_response("101 Switching", [])
    return []


def logs(environ, start_response):
    print("to the log", file=environ["wsgi.errors"])
    start_response("500 Broken", [])
    return [b"sorry"]


def counted(environ, start_response):
    counted.calls += 1
    start_response("200 OK", [])
    return [str(counted.calls).encode()]


counted.calls = 0


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["loop"] = id(asyncio.get_running_loop())
        await send({"type": "lifespan.startup.complete"})
        await receive()
    request = await receive()
    told = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
        "body": request["body"].decode(),
        "same_loop": scope["state"]["loop"] == id(asyncio.get_running_loop()),
    }
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
    }
    await send(start)
    text = json.dumps(told).encode()
    await send({"type": "http.response.body", "body": text[:10], "more_body": True})
    await send({"type": "http.response.body", "body": text[10:]})
    assert (await receive())["type"] == "http.disconnect"


class AsgiThatRaisesAfterItsAnswer:
    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"sorry"})
        raise ArithmeticError("for the log")


asgi_late = AsgiThatRaisesAfterItsAnswer()


async def asgi_broken(scope, receive, send):
    raise LookupError("no answer")


async def asgi_endless(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    with contextlib.suppress(ZeroDivisionError):
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


async def asgi_that_does_not_start(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def say(send, status, body):
    headers = [(b"content-length", str(len(body)).encode()), (b"x-a", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body[:2], "more_body": True})
    await send({"type": "http.response.body", "body": body[2:]})


async def asgi_status(scope, receive, send):
    assert scope["type"] == "http"
    await say(send, int(scope["path"][1:]), b"a body")


def wsgi_status(environ, start_response):
    write = start_response(environ["PATH_INFO"][1:] + " OK", [("content-length", "6"), ("x-a", "1")])
    write(b"a ")
    return [b"body"]


def asgi_by_plain_def(scope, receive, send):
    return asgi_status(scope, receive, send)


def asgi_that_raises_at_once(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    return asgi_status(scope, receive, send)


class AsgiByClass:
    def __call__(self, scope, receive, send):
        return asgi_status(scope, receive, send)

    def method(self, scope, receive, send):
        return asgi_status(scope, receive, send)


asgi_by_class = AsgiByClass()
asgi_by_method = asgi_by_class.method
asgi_by_partial = functools.partial(lambda extra, scope, receive, send: asgi_status(scope, receive, send), 1)


def wraps(app):
    @functools.wraps(app)
    def wrapper(*args):
        return app(*args)

    return wrapper


asgi_wrapped = wraps(asgi_by_plain_def)
asgi_wrapped_coroutine = wraps(asgi_status)
wsgi_wrapped = wraps(wsgi_status)


def asgi_with_defaults(scope, receive=None, send=None):
    return asgi_status(scope, receive, send)


def wsgi_with_default(environ, start_response, extra=None):
    return wsgi_status(environ, start_response)


class WsgiByClass:
    def __call__(self, environ, start_response):
        return wsgi_status(environ, start_response)


wsgi_by_class = WsgiByClass()


def double(number):
    return number * 2


def wsgi_spawns(environ, start_response):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        body = str(pool.map(double, [21])[0]).encode()
    start_response("200 OK", [])
    return [body]


sys.stdout.flush()
