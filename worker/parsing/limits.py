"""Resource limits and the system-call filter of the parsing child. The filter is for Linux only."""

import contextlib
import ctypes
import math
import os
import resource
import signal
import struct
import sys
from pathlib import Path

# liteparse reserves 1.2 GB of address space (measured: 30 MB of it resident), so the limit on addresses is that much
# higher than the limit on resident memory, which the parent enforces.
RESERVED_ADDRESSES = 1536 << 20
OPEN_FILES = 64
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
# (architecture, socket, execve, execveat, io_uring_setup) of <asm/unistd.h>. socketpair is allowed: tokio needs it, and
# it reaches no other process.
CALLS = {"x86_64": (0xC000003E, 41, 59, 322, 425), "aarch64": (0xC00000B7, 198, 221, 281, 425)}
DENIED = 0x00050001  # SECCOMP_RET_ERRNO | EPERM
ALLOWED = 0x7FFF0000


def set_limits(memory_bytes: int) -> None:
    """Limit this process permanently, without RLIMIT_NPROC, which counts all processes of the user."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if sys.platform == "linux":
        _lower(resource.RLIMIT_AS, memory_bytes + RESERVED_ADDRESSES)
        deny_calls()
        # Out of memory, the kernel should end this process, not the worker or the database.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def die_with(parent: int) -> None:
    """End this process with the thread that started it; a C library that hangs never notices a closed pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def allow(seconds: float) -> None:
    """Limit the time for the next document, in case the parent, which waits `seconds`, is gone or stopped."""
    signal.alarm(math.ceil(seconds) + 30)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def deny_calls() -> None:
    """Deny sockets (also unix sockets) and other programs with seccomp, if the kernel has it.

    Unlike a network namespace, seccomp needs no privileges, so it works in a container and for any user.
    """
    numbers = CALLS.get(os.uname().machine)
    if numbers is None or sys.maxsize < 1 << 32:
        return
    architecture, *calls = numbers
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    program = [
        (load, 0, 0, 4),  # the architecture: 32-bit programs have other numbers
        (equal, 0, len(calls) + 3, architecture),
        (load, 0, 0, 0),  # the call's number
        (at_least, len(calls) + 1, 0, 0x40000000),  # x32
        *((equal, len(calls) - index, 0, call) for index, call in enumerate(calls)),
        (give, 0, 0, ALLOWED),
        (give, 0, 0, DENIED),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter = struct.pack("HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_SECCOMP, 2, filter, 0, 0)
