#!/usr/bin/env python3
"""A command that does what its request says."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

request_file = pathlib.Path(os.environ["CONTAINERPUB_REQUEST_FILE"])
result_file = pathlib.Path(os.environ["CONTAINERPUB_RESULT_FILE"])
request = json.loads(request_file.read_text())
body = request["body"]


def give(value):
    result_file.write_text(json.dumps({"body": value}))


def attempt(action):
    try:
        action()
    except OSError as error:
        return error.strerror
    return "done"


what, argument = body["do"], body.get("with")
if what == "echo":
    print("out")
    print("err", file=sys.stderr)
    give(argument)
elif what == "wait":
    print("began", flush=True)
    time.sleep(argument)
    print("ended", flush=True)
    give("waited")
elif what == "tell":
    settings = pathlib.Path(os.environ["CONTAINERPUB_ENV_FILE"]).read_text()
    give({"environ": dict(os.environ), "request": request, "settings": settings})
elif what == "write":
    result_file.write_text(argument)
elif what == "fail":
    give({"error": argument})
    sys.exit(1)
elif what == "exit":
    sys.exit(argument)
elif what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "sleep":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    give("too early")
    subprocess.Popen(["sleep", "60"])
    time.sleep(60)
elif what == "hoard":
    held = []
    while True:
        held.append(bytearray(b"x" * 1_000_000))
elif what == "huge":
    with result_file.open("w") as file:
        file.write('{"body": "' + "x" * argument + '"}')
elif what == "flood":
    end = time.monotonic() + argument
    while time.monotonic() < end:
        os.write(1, b"x" * 65536)
    give("done")
elif what == "replace":
    other = result_file.with_name("other")
    give(
        [
            attempt(result_file.unlink),
            attempt(lambda: other.symlink_to("/etc/passwd")),
            attempt(lambda: pathlib.Path("/tmp/other").symlink_to("/etc/passwd")),
            attempt(lambda: os.rename("/tmp/other", result_file)),
            attempt(lambda: request_file.write_text("{}")),
        ]
    )
elif what == "link":
    result_file.unlink()
    result_file.symlink_to(argument)
elif what == "pipe":
    result_file.unlink()
    os.mkfifo(result_file)
