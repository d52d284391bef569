"""Become another program that dies with the process which started this one.

Run as a file, with ``python -I -S`` (about 9 ms): ``launch.py PARENT SIGNAL UID GID PROGRAM ARGS…``. The kernel then
sends SIGNAL when PARENT dies, even by SIGKILL. A ``preexec_fn`` would do the same, but runs Python between fork and
exec of a process that may have threads. UID and GID of ``-`` keep the caller's.

The order matters: a change of credentials clears the death signal, exec of an ordinary program does not. Imports come
first, because the other account may not be able to read this Python's library.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, number, uid, gid, *argv = sys.argv[1:]
    if uid != "-":
        os.setgroups([])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != int(parent):
        raise SystemExit(f"{argv[0]}: the process that asked for it is gone")
    os.execv(argv[0], argv)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
