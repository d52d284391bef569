"""Installs a function's dependencies inside the base image, and sends them out as a ustar stream.

Runs as ``python3 -c SOURCE REQUIREMENTS TARGET [PROXY_SOCKET]`` in a container without any network. What pip prints
goes to stderr, the archive of TARGET to stdout. With PROXY_SOCKET, pip reaches its index through that Unix socket;
a package's own build scripts have no other way out either. ``python3 -c SOURCE --hosts`` prints the hosts that this
image's pip takes packages from, one a line.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import socket
import subprocess
import sys
import tarfile
import threading

# Foreign code runs as a child of this process. What it prints must not end up in the archive.
ARCHIVE_FD = os.dup(1)
os.set_inheritable(ARCHIVE_FD, False)
os.dup2(2, 1)


def forward(socket_path: str) -> int:
    """Pass every connection to a local port on to the Unix socket, because pip speaks to a proxy by TCP only."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            for each in (source, target):
                each.close()

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(socket_path)
            except OSError:
                near.close()
                continue
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def install(requirements: str, target: str, scratch: str, proxy: str | None) -> int:
    command = [
        *(sys.executable, "-m", "pip", "install", "--isolated", "--no-input", "--no-color", "--progress-bar", "off"),
        *("--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--no-warn-script-location"),
        *("--root-user-action", "ignore", "--retries", "2", "--timeout", "20"),
        *("--target", target, "--requirement", requirements),
    ]
    if proxy is not None:
        command += ["--proxy", proxy]
    # Beside the target, so that moving what was installed is a rename and not a second copy in memory.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


def judge_indexes(requirements: str) -> bool:
    """Whether each index that the project names is the one in use; says so of the first one that is not."""
    from pip._internal.models.index import PyPI

    path = os.path.join(os.path.dirname(requirements), "indexes.txt")
    if not os.path.exists(path):
        return True
    with open(path, encoding="ascii") as lines:
        for line in lines:
            where, address = line.split()
            if plain(address) != plain(PyPI.simple_url):
                print(f"{where}: {address} is not the index in use, which is {PyPI.simple_url}: leave the option out")
                return False
    return True


def plain(address: str) -> str:
    """An address without what makes no difference."""
    scheme, _, rest = address.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host.lower().removesuffix(':443')}/{path.strip('/')}"


def send(target: str) -> None:
    """Only plain files and folders; names that ustar cannot hold are left out, and said so."""
    with (
        open(ARCHIVE_FD, "wb", buffering=1 << 20) as out,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT, encoding="utf-8") as archive,
    ):
        for folder, folders, names in os.walk(target):
            folders.sort()
            for name in sorted(folders + names):
                path = os.path.join(folder, name)
                info = archive.gettarinfo(path, os.path.relpath(path, target))
                if info is None or not (info.isreg() or info.isdir() or info.islnk()) or os.path.islink(path):
                    print(f"left out {path}: neither a file nor a folder")
                    continue
                if info.islnk():
                    info.type, info.size = tarfile.REGTYPE, os.path.getsize(path)
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                try:
                    if info.isreg():
                        with open(path, "rb") as content:
                            archive.addfile(info, content)
                    else:
                        archive.addfile(info)
                except ValueError:
                    print(f"left out {path}: its name is too long")


def hosts() -> list[str]:
    from pip._internal.models.index import PyPI

    return [PyPI.netloc, PyPI.file_storage_domain]


def main() -> int:
    if sys.argv[1:] == ["--hosts"]:
        os.write(ARCHIVE_FD, "\n".join(hosts()).encode())
        return 0
    requirements, target = sys.argv[1:3]
    target = os.path.abspath(target)
    if not judge_indexes(os.path.abspath(requirements)):
        return 1
    scratch = os.path.join(target, ".scratch")
    os.mkdir(scratch, 0o700)
    proxy = f"http://127.0.0.1:{forward(sys.argv[3])}" if len(sys.argv) > 3 else None
    code = install(requirements, target, scratch, proxy)
    if code != 0:
        return code
    shutil.rmtree(scratch, ignore_errors=True)
    # A sandbox cannot write, so what is not compiled now is compiled at every cold start. By hash, never checked,
    # because the times of files do not survive the way into an image.
    compileall.compile_dir(
        target, quiet=2, ddir="/dependencies", invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    sys.stdout.flush()
    send(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
