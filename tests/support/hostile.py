"""Children of intake that do what no decoder does: the process is the real one, and so is all that holds them."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
act = sys.argv.pop(1)
from workers.intake import __main__ as intake, rehearsal, work
import ctypes, mmap, os, signal, socket, time
from shared.decoding import Verdict
parent = os.getpid()
libc = ctypes.CDLL(None, use_errno=True)
rehearse = rehearsal.rehearse

def said(call):
    try:
        return Verdict(refused=f"did: {call()}")
    except OSError as error:
        return Verdict(refused=f"denied: {error.errno}")

def crash(*_):
    ctypes.string_at(0)

def hang(*_):
    while True:
        time.sleep(1000)

def run_away(*_):
    while True:
        pass

def take_memory(*_):
    data = []
    while True:
        data.append(bytearray(64 * 1024 * 1024))

def write_much(ask, file, target):
    while True:
        target.write(bytes(1024 * 1024))
        target.flush()

def write_elsewhere(*_):
    return said(lambda: os.open("/tmp/genfleet-escaped", os.O_WRONLY | os.O_CREAT))

def read_elsewhere(*_):
    return said(lambda: os.open("/etc/passwd", os.O_RDONLY))

def fork(*_):
    return said(os.fork)

def thread(*_):
    import _thread
    try:
        _thread.start_new_thread(time.sleep, (1,))
    except RuntimeError:
        return Verdict(refused="denied: thread")
    return Verdict(refused="did: thread")

def run_code(*_):
    return said(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))

def connect(*_):
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)

def local_socket(*_):
    socket.socketpair()

def execute(*_):
    os.execv("/bin/true", ["true"])

def trace(*_):
    libc.ptrace(0, 0, 0, 0)

def kill_parent(*_):
    os.kill(parent, signal.SIGTERM)

def tell(*_):
    held = []
    for descriptor in range(64):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        held.append(descriptor)
    return Verdict(refused=f"{held} {dict(os.environ)}")

def lie(*_):
    os.write(5, b"{not json")

def lie_about_frames(ask, file, target):
    target.write(b"x" * 100)
    target.flush()
    return Verdict()

def flood(*_):
    os.write(5, b"x" * 60000)
    os.write(5, b"y" * 60000)
    hang()

def then_act():
    rehearse()
    work.answer = globals()[act]

rehearsal.rehearse = then_act
intake.main(sys.argv[1:])
"""


def program(act: str) -> tuple[str, ...]:
    """A command line for ``shared.intake.Intake`` whose children do this instead of decoding."""
    return (sys.executable, "-I", "-c", _BOOT, _ROOT, act)
