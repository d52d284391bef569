"""What a function tries in its sandbox, asked for by name; the same in each runtime that runs Python."""

import errno
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time

KEPT = {}


def answer(do, given):
    try:
        return globals()["try_" + do](given)
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)


def try_write(path):
    with open(path, "w") as file:
        file.write("x")
    return "written"


def try_fill(given):
    path, megabytes = given
    with open(path, "wb", buffering=0) as file:
        for _ in range(megabytes):
            if file.write(bytes(1024**2)) < 1024**2:
                raise OSError(errno.ENOSPC, "cut short")
    return "written"


def try_files(given):
    folder, most = given
    os.makedirs(folder, exist_ok=True)
    for number in range(most):
        try:
            open(f"{folder}/{number}", "w").close()
        except OSError as error:
            return [number, errno.errorcode[error.errno]]
    return [most, None]


def try_fill_folder(given):
    folder, megabytes = given
    for number in range(0, megabytes, 16):
        try_fill([f"{folder}/{number}", 16])
    return "written"


def try_exists(path):
    return os.path.exists(path)


def try_run_file(path):
    with open(path, "w") as file:
        file.write("#!/bin/sh\nexit 0\n")
    os.chmod(path, 0o755)
    return subprocess.run([path]).returncode


def try_folder(given):
    return os.getcwd()


def try_identity(given):
    user = pwd.getpwuid(os.getuid())
    return {"uid": os.getuid(), "gid": os.getgid(), "name": user.pw_name, "home": user.pw_dir}


def try_environment(given):
    return dict(os.environ)


def try_time(given):
    return [time.tzname[0], time.time()]


def try_stdin(given):
    return sys.stdin.read() if sys.stdin else ""


def try_resolve(name):
    try:
        return sorted({found[4][0] for found in socket.getaddrinfo(name, 80)})
    except socket.gaierror:
        return "unknown"


def try_connect(given):
    host, port = given
    socket.create_connection((host, port), timeout=2).close()
    return "connected"


def try_listen(given):
    with (
        socket.create_server(("localhost", 0)) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
        server.accept()[0] as peer,
    ):
        client.sendall(b"x")
        return peer.recv(1).decode()


def try_processes(given):
    started = []
    try:
        for _ in range(200):
            started.append(subprocess.Popen(["sleep", "60"]))
    except OSError as error:
        return [len(started), errno.errorcode[error.errno]]
    finally:
        for one in started:
            one.kill()
            one.wait()
    return [len(started), None]


def try_descriptors(given):
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return [len(opened), errno.errorcode[error.errno]]
    finally:
        for one in opened:
            os.close(one)


def try_seen_processes(given):
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def try_allocate(megabytes):
    return len(bytes(b"x" * (megabytes * 1024**2)))


def try_remember(given):
    KEPT["count"] = KEPT.get("count", 0) + 1
    return KEPT["count"]


def try_sleep_deaf(seconds):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, lambda *_: print("warned", flush=True))
    print("sleeping", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    return "slept"


def try_print(given):
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
