"""Functions that the engine tests call, good ones and bad ones. Each stands for what a tenant might deploy."""

import _thread
import asyncio
import ctypes
import errno
import functools
import grp
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory

from containerpub import FunctionError, Response

print("imported")
calls = 0
kept = {}


def echo(event, context):
    return event["body"]


async def async_echo(event, context):
    await asyncio.sleep(0)
    return event["body"]


def whole_event(event, context):
    return event


def response(event, context):
    return Response(201, {"X-Answer": "42"}, {"made": True})


def describe_context(event, context):
    return {
        "job_id": context.job_id,
        "attempt": context.attempt,
        "function": context.function,
        "version": context.version,
        "remaining_s": context.deadline - time.time(),
    }


def log(event, context):
    print("before")
    context.logger.info("value is %d", 7)
    print("after")
    context.logger.error("broken \ud800 text")
    print("to stderr", file=sys.stderr)


def log_many(event, context):
    for number in range(event["body"]):
        context.logger.info("entry %d %s", number, "x" * 100)


def log_long(event, context):
    context.logger.info("\x01ü" * event["body"])


def follow(event, context):
    print("began", flush=True)
    context.logger.info("logged")
    context.progress(0.5, "half\ud800")
    for _ in range(1000):
        context.progress(0.6)
    time.sleep(event["body"])
    context.progress(1)
    print("ended", flush=True)


def progress_wrongly(event, context):
    refused = []
    for wrong in (-0.1, 1.1, float("nan"), "half", None):
        try:
            context.progress(wrong)
        except (ValueError, TypeError) as error:
            refused.append(type(error).__name__)
    return refused


def say(event, context):
    print("out", event["body"])
    print("err", event["body"], file=sys.stderr)


def write_bytes(event, context):
    os.write(1, bytes.fromhex(event["body"]))


def flood(event, context):
    line = b"x" * 1023 + b"\n"
    for _ in range(event["body"] * 1024):
        os.write(1, line)
    return "done"


def flood_forever(event, context):
    while True:
        os.write(2, b"y" * 65536)


def sleep(event, context):
    time.sleep(event["body"])
    return "slept"


def ignore_signals(event, context):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    print("still here")
    while True:
        pass


def stop_itself(event, context):
    os.kill(os.getpid(), signal.SIGSTOP)


def exit_at_once(event, context):
    print("last words")
    os._exit(event["body"])


def sys_exit(event, context):
    print("leaving")
    sys.exit(event["body"])


def kill_itself(event, context):
    os.kill(os.getpid(), signal.SIGKILL)


def signal_itself(event, context):
    os.kill(os.getpid(), event["body"])
    time.sleep(60)


def look_up(event, context):
    return socket.getaddrinfo(event["body"], 80)


def hog_memory(event, context):
    held = []
    while True:
        held.append(bytearray(1024 * 1024))


def allocate(event, context):
    return len(bytearray(b"x") * (event["body"] * 1024 * 1024))


def allocate_in_child(event, context):
    if os.fork() == 0:
        held = bytearray(b"x") * (event["body"] * 1024 * 1024)
        os._exit(len(held) == 0)
    return os.wait()[1]


def fill_tmp_and_allocate(event, context):
    in_tmp, on_heap = event["body"]
    write_file({"body": ["/tmp/filled", in_tmp * 1024 * 1024]}, context)
    return allocate({"body": on_heap}, context)


def hog_memory_in_child(event, context):
    if os.fork() == 0:
        hog_memory(event, context)
    _, status = os.wait()
    return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) != 0


def fail(event, context):
    try:
        int("one")
    except ValueError as error:
        raise KeyError("outer") from error


def fail_on_purpose(event, context):
    raise FunctionError("no such customer")


def fail_unprintably(event, context):
    class Bad(Exception):
        def __str__(self):
            raise RuntimeError

    raise Bad


def fail_with_surrogate(event, context):
    raise ValueError("lone \ud800 surrogate")


def raise_memory_error(event, context):
    raise MemoryError


def give(event, context):
    """Results that JSON cannot say, by name."""
    circle = []
    circle.append(circle)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    return {
        "object": object(),
        "nan": float("nan"),
        "infinity": float("inf"),
        "nan_inside": {"a": [1, float("nan")]},
        "bytes": b"raw",
        "set": {1},
        "surrogate": "\ud800",
        "circle": circle,
        "deep": deep,
        "huge_int": 10**5000,
    }[event["body"]]


def large(event, context):
    return "x" * event["body"]


def count(event, context):
    global calls
    calls += 1
    return calls


def environment(event, context):
    return dict(os.environ)


def describe_start(event, context):
    print("ü")
    seed = os.environ.get("PYTHONHASHSEED")
    return {
        "hash": seed and hash("same"),
        "zone": time.tzname,
        "encodings": [sys.getfilesystemencoding(), sys.stdout.encoding],
        "value": os.environ[event["body"]],
        "path": [entry for entry in sys.path if "more" in entry],
    }


def describe_files(event, context):
    """Mode, and whether it is ours, of every file in a folder."""
    found = {}
    for entry in os.scandir(event["body"]):
        found[entry.name] = [entry.stat().st_mode, entry.stat().st_uid == os.getuid()]
    return found


def environments_of_all(event, context):
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ") as file:
                    found[entry] = file.read()
            except OSError:
                pass
    return found


def descriptors(event, context):
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[entry] = os.readlink("/proc/self/fd/" + entry)
        except FileNotFoundError:
            # The descriptor of the listing itself.
            pass
    return found


def control_descriptor():
    for number in range(3, 64):
        try:
            if socket.socket(fileno=os.dup(number)).getpeername().endswith("/s"):
                return number
        except (OSError, AttributeError):
            continue
    raise RuntimeError("no control connection found")


def write_to_control(event, context):
    os.write(control_descriptor(), bytes.fromhex(event["body"]))
    return "unharmed"


def write_to_control_and_hang(event, context):
    os.write(control_descriptor(), bytes.fromhex(event["body"]))
    time.sleep(60)


def close_control(event, context):
    os.close(control_descriptor())
    time.sleep(60)


def forge_answer(event, context):
    """Answers its own call over the control connection, with the right nonce and the given rest."""
    import gc

    calls = (one for one in gc.get_objects() if isinstance(one, dict) and "max_result_bytes" in one)
    nonce = next(one["nonce"] for one in calls if "nonce" in one)
    body = event["body"].replace("NONCE", nonce).encode()
    length = event["query"].get("length", len(body))
    os.write(control_descriptor(), int(length).to_bytes(4, "big") + body)
    time.sleep(60)


def send_frames(event, context):
    """Sends frames of its own making, each (how often, beginning, filling, how often that, end), and then answers."""
    import gc

    calls = (one for one in gc.get_objects() if isinstance(one, dict) and "max_result_bytes" in one)
    nonce = next(one["nonce"] for one in calls if "nonce" in one)
    with socket.socket(fileno=os.dup(control_descriptor())) as control:
        for count, begin, filling, times, end in event["body"]:
            body = (begin.replace("NONCE", nonce) + filling * times + end).encode()
            for _ in range(count):
                control.sendall(len(body).to_bytes(4, "big") + body)
    return "unharmed"


def forge_on_stdout(event, context):
    body = b'{"nonce":"0000000000000000","kind":"result","response":false,"cpu_ms":0,"peak_memory_bytes":0}\n"forged"'
    os.write(1, len(body).to_bytes(4, "big") + body)
    return "real"


def close_output(event, context):
    os.close(1)
    os.close(2)
    return "quiet"


def leave_child_behind(event, context):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    return os.getpid()


def leave(event, context):
    """Leaves behind what is asked for, and tells the process's id."""
    left = {
        "nothing": lambda: None,
        "ended thread": lambda: end(threading.Thread(target=print)),
        "thread": lambda: threading.Thread(target=time.sleep, args=(600,), daemon=True).start(),
        "bare thread": lambda: _thread.start_new_thread(time.sleep, (600,)),
        "idle executor": lambda: kept.setdefault("executor", ThreadPoolExecutor(2)).submit(int).result(),
        "busy executor": lambda: kept.setdefault("executor", ThreadPoolExecutor(2)).submit(time.sleep, 600),
        "child": lambda: subprocess.Popen(["sleep", "600"]),
        "ended child": lambda: subprocess.run(["true"], check=True),
        "child not waited for": lambda: os.fork() or os._exit(0),
        "orphan": lambda: leave_child_behind(event, context),
        "client": lambda: kept.setdefault("client", [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]),
        "closed stdout": lambda: os.close(1),
        "led stderr elsewhere": lambda: os.dup2(os.open("/dev/null", os.O_WRONLY), 2),
        "alarm": lambda: signal.alarm(600),
        "ended alarm": lambda: (signal.alarm(600), signal.alarm(0)),
        "descriptors": lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(40)],
    }
    left[event["body"]]()
    return os.getpid()


def open_without_end(event, context):
    held = []
    while True:
        held.append(open("/dev/null"))  # noqa: SIM115


def leave_shared_memory(event, context):
    with open(f"/dev/shm/{context.job_id}", "wb") as file:
        file.write(bytes(event["body"]))


def leak_descriptor(event, context):
    os.open("/dev/null", os.O_RDONLY)


def end(thread):
    thread.start()
    thread.join()


async def leave_in_loop(event, context):
    """Leaves behind in the event loop what is asked for, and tells the process's id and what went on in it so far."""

    async def go_on():
        await asyncio.sleep(0.1)
        context.logger.error("went on")
        kept["went on"] = True

    def cancelled():
        asyncio.ensure_future(go_on()).cancel()

    def in_other_loop():
        async def begin():
            kept["task"] = asyncio.ensure_future(go_on())

        kept["loop"] = asyncio.new_event_loop()
        with ThreadPoolExecutor(1) as other:
            other.submit(kept["loop"].run_until_complete, begin()).result()

    loop = asyncio.get_running_loop()
    left = {
        "nothing": lambda: None,
        "ended task": lambda: asyncio.ensure_future(asyncio.sleep(0)),
        "task about to end": lambda: asyncio.ensure_future(asyncio.sleep(0.01)),
        "cancelled task": cancelled,
        "task": lambda: kept.setdefault("task", asyncio.ensure_future(go_on())),
        "task that is held by none": lambda: asyncio.ensure_future(go_on()),
        "endless task": lambda: asyncio.ensure_future(asyncio.Event().wait()),
        "task in another loop": in_other_loop,
        "gathered": lambda: asyncio.gather(go_on(), go_on()),
        "timer": lambda: loop.call_later(0.1, lambda: kept.setdefault("went on", True)),
        "method by a timer": lambda: loop.call_later(60, functools.partial(Later().run, 1)),
        "cancelled timer": lambda: loop.call_later(60, lambda: None).cancel(),
        "timer of a package": lambda: loop.call_later(60, loop.get_debug),
    }[event["body"]]
    left()
    return [os.getpid(), "went on" in kept]


class Later:
    def run(self, number):
        kept["went on"] = True


async def wait_a_little(event, context):
    await asyncio.sleep(0.2)
    return [os.getpid(), "went on" in kept]


async def leave_loop_threads(event, context):
    await asyncio.to_thread(time.sleep, 0)
    return os.getpid()


def leave_files(event, context):
    count, size = event["body"]
    folder = tempfile.mkdtemp()
    for number in range(count):
        with open(f"{folder}/{number}", "wb") as file:
            file.write(bytes(size))
    return "room was left"


def write_and_leave(event, context):
    with open(os.environ["HOME"] + "/kept", "a") as file:
        file.write(event["body"])
    with open(os.environ["HOME"] + "/kept") as file:
        return file.read()


def libc_call(event, context):
    """The error number of a system call by number, 0 when it is let through."""
    libc = ctypes.CDLL(None, use_errno=True)
    number, *arguments = event["body"]
    ctypes.set_errno(0)
    return 0 if libc.syscall(number, *arguments) != -1 else ctypes.get_errno()


def share_memory(event, context):
    """Fill as many mebibytes of shared memory as ``body`` says, in another process."""
    size = event["body"] * 1024**2
    memory = SharedMemory(create=True, size=size)
    try:
        filling = get_context("fork").Process(target=_fill, args=(memory.name, size))
        filling.start()
        filling.join()
        if filling.exitcode:
            os.kill(os.getpid(), -filling.exitcode)  # as a function that needs what the other process made
        return sum(memory.buf[place] for place in range(0, size, 1024**2))
    finally:
        memory.close()
        memory.unlink()


def _fill(name, size):
    memory = SharedMemory(name=name)
    for place in range(0, size, 4096):
        memory.buf[place] = 1
    memory.close()


_KEPT = []


def take_inotify(event, context):
    """Keep as many inotify instances as ``body`` says, or all there are to have; how many it got, and the error."""
    libc = ctypes.CDLL(None, use_errno=True)
    got = 0
    while got < event["body"]:
        ctypes.set_errno(0)
        instance = libc.inotify_init1(0)
        if instance < 0:
            return [got, ctypes.get_errno()]
        _KEPT.append(instance)
        got += 1
    return [got, 0]


def identity(event, context):
    user = pwd.getpwuid(os.getuid())
    return {
        "ids": [*os.getresuid(), *os.getresgid()],
        "groups": os.getgroups(),
        "user": user.pw_name,
        "home": user.pw_dir,
        "group": grp.getgrgid(os.getgid()).gr_name,
        "localhost": sorted({address[0] for *_, address in socket.getaddrinfo("localhost", 80)}),
    }


def open_socket(event, context):
    family, kind, protocol = event["body"]
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        return error.errno
    return 0


def connect(event, context):
    host, port = event["body"]
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError as error:
        return error.errno
    return 0


def connect_abstract(event, context):
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0" + event["body"])
    except OSError as error:
        return error.errno
    return 0


def interfaces(event, context):
    return [name for _, name in socket.if_nameindex()]


def status(event, context):
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def write_file(event, context):
    path, size = event["body"]
    try:
        with open(path, "wb") as file:
            while size > 0:
                file.write(b"x" * min(size, 65536))
                size -= 65536
    except OSError as error:
        return error.errno
    return 0


def make_files(event, context):
    made = 0
    try:
        for number in range(event["body"]):
            open(f"/tmp/inode{number}", "w").close()
            made += 1
    except OSError as error:
        return [made, error.errno]
    return [made, 0]


def open_many(event, context):
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return [len(opened), error.errno]
    finally:
        for one in opened:
            os.close(one)


def fork_bomb(event, context):
    children = []
    try:
        for _ in range(1000):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    except OSError as error:
        return [len(children), error.errno]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def make_zombies(event, context):
    for _ in range(event["body"]):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    return len([entry for entry in os.listdir("/proc") if entry.isdigit()])


def read_files(event, context):
    found = {}
    for path in event["body"]:
        try:
            with open(path, "rb") as file:
                found[path] = len(file.read(1))
        except OSError as error:
            found[path] = -error.errno
    return found


def list_folder(event, context):
    return sorted(os.listdir(event["body"]))


def read_own_data(event, context):
    with open("data.txt") as file:
        return file.read()


SPENT = []


def answer_for_an_earlier_call(event, context):
    """Keeps the nonce of its call, and answers with those of the calls before, as a late thread of theirs would."""
    import gc

    calls = (one for one in gc.get_objects() if isinstance(one, dict) and "max_result_bytes" in one)
    nonce = next(one["nonce"] for one in calls if "nonce" in one)
    for spent in SPENT:
        body = b'{"nonce":"%s","kind":"result","cpu_ms":0,"peak_memory_bytes":0}\n"late"' % spent.encode()
        os.write(control_descriptor(), len(body).to_bytes(4, "big") + body)
    SPENT.append(nonce)
    return event["body"]


def reach(event, context):
    """What each of ``[host, port, kind, way]`` leads to: the first bytes of an answer, or the name of the error."""
    return [reached(*one) for one in event["body"]]


def reached(host, port, kind, way=""):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        extra = []
        try:
            index = socket.if_nametoindex("eth0")
            if "device" in way:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
            if "dontroute" in way:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
            if "interface" in way:
                client.setsockopt(socket.IPPROTO_IP, 50, struct.pack(">I", index))  # IP_UNICAST_IF
            if "packet" in way:
                extra = [(socket.IPPROTO_IP, 8, struct.pack("=iII", index, 0, 0))]  # IP_PKTINFO
            if "broadcast" in way:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if kind == "tcp":
                client.connect((host, port))
            else:
                client.sendmsg([b"ask"], extra, 0, (host, port))
            return client.recv(64).decode()
        except OSError as error:
            return errno.errorcode.get(error.errno, type(error).__name__)


def listen(event, context):
    """Listen on all addresses for as long as the sandbox is there; its own address."""
    kept["listener"] = socket.create_server(("0.0.0.0", event["body"]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("8.8.8.8", 53))
        return client.getsockname()[0]


def send_many(event, context):
    """How many of so many datagrams to as many ports the network took."""
    host, count = event["body"]
    taken = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for port in range(20_000, 20_000 + count):
            try:
                client.sendto(b"ask", (host, port))
            except PermissionError:
                continue
            taken += 1
    return taken


def resolve(event, context):
    try:
        return sorted({entry[4][0] for entry in socket.getaddrinfo(event["body"], None, socket.AF_INET)})
    except socket.gaierror:
        return []


def change_network(event, context):
    """The errors of what would change routes, addresses and rules: netlink family and type of the message."""
    answers = []
    for family, kind in event["body"]:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as kernel:
            kernel.send(struct.pack("=IHHII", 32, kind, 5, 1, 0) + bytes(16))
            _, _, _, _, _, code = struct.unpack_from("=IHHIIi", kernel.recv(4096))
            answers.append(-code)
    return answers
