"""Which system calls a decoding child may make, as a filter program for the kernel (seccomp(2), prctl(2), BPF).

Three answers: what decoding needs is allowed; what no decoder ever has a reason for ends the process at once, so that
it is seen; all else fails with EPERM, because libraries try things that they can do without. Memory that can be
executed cannot be had.

Source of the numbers: Linux' tables for x86_64 (``arch/x86/entry/syscalls/syscall_64.tbl``) and for aarch64
(``include/uapi/asm-generic/unistd.h``). The program begins as seccomp(2) says that it must: with the architecture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from msgspec import Struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
_PROT_EXEC = 4
#: Calls of the 32-bit ABI on x86_64 have this bit.
_X32 = 0x40000000

#: Read, write and measure the descriptors that are there; have memory; wait, tell the time, end.
ALLOWED = (
    "read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "close", "fstat", "newfstatat", "ftruncate",
    "mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "futex", "set_robust_list", "rseq", "nanosleep",
    "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "sched_yield", "sched_getaffinity", "sysinfo",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "getrandom", "getpid", "gettid", "getrusage",
    "restart_syscall", "exit", "exit_group",
)  # fmt: skip
#: Programs, processes, the network, other processes' memory, and the kernel's own machinery.
DEADLY = (
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "kill", "socket", "socketpair", "connect",
    "accept", "bind", "listen", "sendto", "sendmsg", "recvfrom", "recvmsg", "mount", "chroot", "pivot_root", "unshare",
    "setns", "bpf", "perf_event_open", "init_module", "finit_module", "io_uring_setup", "keyctl", "userfaultfd",
    "open_by_handle_at",
)  # fmt: skip


class Machine(Struct, frozen=True):
    """A processor's word for itself (``linux/audit.h``), and its numbers of system calls."""

    audit: int
    calls: dict[str, int]


_X86_64 = Machine(
    0xC000003E,
    {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
        "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "socket": 41,
        "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "bind": 49,
        "listen": 50, "socketpair": 53, "execve": 59, "exit": 60, "kill": 62, "ftruncate": 77, "gettimeofday": 96,
        "getrusage": 98, "sysinfo": 99, "ptrace": 101, "sigaltstack": 131, "pivot_root": 155, "chroot": 161,
        "mount": 165, "init_module": 175, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
        "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
        "keyctl": 250, "newfstatat": 262, "unshare": 272, "set_robust_list": 273, "perf_event_open": 298,
        "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "finit_module": 313, "getrandom": 318, "bpf": 321, "execveat": 322, "userfaultfd": 323, "rseq": 334,
        "io_uring_setup": 425,
    },
)  # fmt: skip
_AARCH64 = Machine(
    0xC00000B7,
    {
        "mount": 40, "pivot_root": 41, "ftruncate": 46, "chroot": 51, "close": 57, "lseek": 62, "read": 63,
        "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "newfstatat": 79, "fstat": 80,
        "exit": 93, "exit_group": 94, "unshare": 97, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
        "init_module": 105, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "ptrace": 117,
        "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "kill": 129, "sigaltstack": 132,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "getrusage": 165, "gettimeofday": 169,
        "getpid": 172, "gettid": 178, "sysinfo": 179, "socket": 198, "socketpair": 199, "bind": 200, "listen": 201,
        "accept": 202, "connect": 203, "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "brk": 214,
        "munmap": 215, "mremap": 216, "keyctl": 219, "execve": 221, "mmap": 222, "mprotect": 226, "madvise": 233,
        "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "finit_module": 273, "getrandom": 278, "bpf": 280, "execveat": 281,
        "userfaultfd": 282, "rseq": 293, "io_uring_setup": 425,
    },
)  # fmt: skip
#: By ``platform.machine()``.
MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}


def program(machine: Machine) -> bytes:
    """The filter as an array of ``struct sock_filter``."""
    calls = machine.calls
    mapping = sorted(calls[name] for name in ("mmap", "mprotect"))
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, machine.audit, yes=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine is _X86_64:
        code += [_step(_AT_LEAST, _X32, no=1), _step(_RETURN, _KILL)]
    code += _answered(_KILL, (calls[name] for name in DEADLY))
    code += _answered(_ALLOW, (calls[name] for name in ALLOWED if calls[name] not in mapping))
    first, second = mapping
    code += [
        _step(_EQUAL, first, yes=2),
        _step(_EQUAL, second, yes=1),
        _step(_RETURN, _DENY),
        _step(_LOAD, _THIRD_ARGUMENT),
        _step(_ANY_BIT, _PROT_EXEC, no=1),
        _step(_RETURN, _DENY),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _answered(answer: int, numbers: Iterable[int]) -> list[bytes]:
    """Steps that return the answer for each of these numbers."""
    return [step for number in sorted(numbers) for step in (_step(_EQUAL, number, no=1), _step(_RETURN, answer))]


def _step(code: int, operand: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, operand)
