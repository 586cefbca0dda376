"""The process: waits for questions, and answers each in a child of its own.

It loads the libraries once, so that a child costs a fork and not a start, and itself never looks at a file. A child
sees one file and then ends. Questions come over a socket whose other end its client holds; when that is closed, all
ends.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import time
from contextlib import suppress

from msgspec import Struct

from shared import decoding
from shared.decoding import Ask, Ended, Hello, Limits, Verdict
from workers.intake import sandbox, work

#: The places of a child's descriptors: the file, where frames go, and the reply.
_FILE, _TARGET, _REPLY = 3, 4, 5
_MAX_DESCRIPTORS = 3


class _Child(Struct):
    """A child at work: its reply's socket, when it is killed (monotonic), and whether it has been."""

    reply: socket.socket
    until: float
    late: bool = False


def serve(control: socket.socket) -> None:
    """Answer questions until the client goes away."""
    children: dict[int, _Child] = {}
    woken, waking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    holds, lacks = _tried()
    control.send(decoding.encode(Hello(holds=holds, lacks=lacks)))
    while True:
        ready = {descriptor for descriptor, _ in waiting.poll(_wait_ms(children))}
        if woken in ready:
            with suppress(BlockingIOError):
                os.read(woken, 4096)
        _kill(children, ready)
        for reply in _bury(children):
            waiting.unregister(reply)
            reply.close()
        if control.fileno() in ready:
            taken = _take(control, children)
            if taken is None:
                break
            waiting.register(taken, 0)  # for the word that nobody listens any more
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _wait_ms(children: dict[int, _Child]) -> float | None:
    waits = [child.until - time.monotonic() for child in children.values() if not child.late]
    return max(0.0, min(waits)) * 1000 + 1 if waits else None


def _kill(children: dict[int, _Child], ready: set[int]) -> None:
    """Kill those whose time is over, and those whose client has gone."""
    now = time.monotonic()
    for pid, child in children.items():
        if not child.late and (child.until <= now or child.reply.fileno() in ready):
            child.late = True
            os.kill(pid, signal.SIGKILL)


def _bury(children: dict[int, _Child]) -> list[socket.socket]:
    """Tell of children that have ended; the sockets that are done with."""
    done: list[socket.socket] = []
    while children:
        pid, status, used = os.wait4(-1, os.WNOHANG)
        if not pid:
            break
        child = children.pop(pid)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        ended = Ended(signal=number, cpu_s=used.ru_utime + used.ru_stime, late=child.late)
        with suppress(OSError):
            child.reply.send(decoding.encode(ended))
        done.append(child.reply)
    return done


def _take(control: socket.socket, children: dict[int, _Child]) -> socket.socket | None:
    """Begin with the next question; its reply's socket, or None if there will be none."""
    packet, descriptors, _, _ = socket.recv_fds(control, decoding.MAX_PACKET, _MAX_DESCRIPTORS)
    if not packet:
        return None
    ask = decoding.asked(packet)
    file, reply, target = descriptors if len(descriptors) == 3 else (*descriptors, -1)
    pid = os.fork()
    if not pid:
        _child(ask, file, target, reply)
    os.close(file)
    if target >= 0:
        os.close(target)
    child = children[pid] = _Child(socket.socket(fileno=reply), time.monotonic() + ask.limits.wall_s)
    return child.reply


def _child(ask: Ask, file: int, target: int, reply: int) -> None:
    """The child's whole life."""
    status = 1
    try:
        _become_child(file, target, reply)
        sandbox.limit(ask.limits, ask.make.max_bytes if ask.make else 0)
        sandbox.confine()
        source = open(_FILE, "rb", buffering=64 * 1024)  # noqa: SIM115
        into = open(_TARGET, "wb", buffering=1024 * 1024) if ask.make else None  # noqa: SIM115
        _say(work.answer(ask, source, into))
        status = 0
    except MemoryError:
        _say(Verdict(refused="it needs more memory to be decoded than is allowed"))
    except Exception as error:
        _say(Verdict(refused=f"it cannot be decoded: {type(error).__name__}"))
    finally:
        os._exit(status)


def _say(verdict: Verdict) -> None:
    os.write(_REPLY, decoding.encode(verdict))


def _become_child(file: int, target: int, reply: int) -> None:
    """Have three descriptors and no more, none of the parent's signals, and no life beyond its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sandbox.die_with_parent()
    for standard in (1, 2):
        os.dup2(0, standard)  # which is /dev/null: nobody writes into the parent's log
    # Out of the way first: one of them may lie where another has to be.
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD, _REPLY + 1) for each in (file, target, reply) if each >= 0]
    places = (_FILE, _TARGET, _REPLY) if target >= 0 else (_FILE, _REPLY)
    for each, place in zip(moved, places, strict=True):
        os.dup2(each, place, inheritable=False)
    if target < 0:
        with suppress(OSError):
            os.close(_TARGET)
    os.closerange(_REPLY + 1, os.sysconf("SC_OPEN_MAX"))


def _tried() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The layers that hold here, as a child finds out."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(writing, _FILE)
            writing = _FILE
            os.closerange(_FILE + 1, os.sysconf("SC_OPEN_MAX"))
            sandbox.limit(Limits(), 0)
            holds, lacks = sandbox.confine()
            os.write(writing, decoding.encode(Hello(holds=holds, lacks=lacks)))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    if not told:
        return (), ("everything",)
    found = decoding.hello(told)
    return ("limits", *found.holds), found.lacks
