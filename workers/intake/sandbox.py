"""What a decoding child gives up before it sees the first byte of a file: other descriptors, limits on memory, time and
what it writes, new privileges, files (Landlock), and all system calls but a few (seccomp, see ``filters``).

Each layer holds without the others. A kernel or container that refuses one is told of, see ``Hello``; the limits, the
closed descriptors and the empty environment need nobody's leave.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from contextlib import suppress

from shared.decoding import Limits
from workers.intake import filters

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
#: landlock_create_ruleset and landlock_restrict_self have these numbers on every processor.
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_VERSION = 1
#: By the version of Landlock, how many kinds of access to files there are; and those to TCP, from the fourth on.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_FILE_RIGHTS = 16
_TCP_RIGHTS = 3
_SIGKILL = 9
#: Those that a child has, and room for one that is opened on the way into the sandbox.
_DESCRIPTORS = 8

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = resource.getpagesize()


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it dies."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def limit(limits: Limits, written: int) -> None:
    """Bound what this process may use from now on.

    Args:
        written: bytes of the largest file that it may write.
    """
    memory = _address_space() + limits.memory
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, written, written),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def confine() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give up privileges, files and system calls, for good; the layers that hold, and those that the kernel refused."""
    layers = {
        "no_new_privileges": _prctl(_PR_SET_NO_NEW_PRIVS, 1),
        "not_dumpable": _prctl(_PR_SET_DUMPABLE, 0),
        "landlock": _landlock(),
        "seccomp": _seccomp(),
    }
    held = tuple(name for name, holds in layers.items() if holds)
    return held, tuple(name for name in layers if name not in held)


def _prctl(option: int, value: int) -> bool:
    return bool(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0)


def _landlock() -> bool:
    """No file can be opened or changed by its name, and no TCP port used (landlock(7))."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:
        return False
    rights = [(1 << _FILE_RIGHTS.get(version, _NEWEST_FILE_RIGHTS)) - 1]
    if version >= 4:
        rights.append(_TCP_RIGHTS)
    asked = struct.pack(f"={len(rights)}Q", *rights)
    ruleset = _libc.syscall(_LANDLOCK_CREATE, asked, ctypes.c_size_t(len(asked)), 0)
    if ruleset < 0:
        return False
    try:
        return bool(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _seccomp() -> bool:
    machine = filters.MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = filters.program(machine)
    asked = _Program(len(code) // 8, code)
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(asked), 0, 0) == 0)


def _address_space() -> int:
    """Bytes of address space that this process has."""
    with suppress(OSError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * _PAGE
    return 512 * 1024 * 1024
