"""The baseline as processes of this machine: redis, gunicorn with one uvicorn worker, in a virtual environment of its
own below ``.tools`` that is made at the first use."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.fleet import ROOT
from tests.support.leash import leashed
from tests.support.nats_server import free_port
from tests.support.redis_server import RedisServer

_HERE = Path(__file__).resolve().parent
_VENV = ROOT / ".tools" / "baseline"
_START_S = 60.0


class Baseline:
    """The running baseline.

    Attributes:
        port: where it answers; ``key``: what it lets in.
    """

    def __init__(self, port: int, key: str, master: int, redis: int) -> None:
        self.port, self.key = port, key
        self._master, self._redis = psutil.Process(master), psutil.Process(redis)

    def used(self) -> dict[str, float]:
        """Processor seconds since each began."""
        web = [self._master, *self._master.children(recursive=True)]
        return {"web": sum(map(_seconds, web)), "broker": _seconds(self._redis)}


@contextmanager
def baseline(folder: Path, style: str) -> Iterator[Baseline]:
    """FastAPI, Celery and Redis while the block runs; ``style`` as in ``app``."""
    python = _ready()
    key, pepper, port = secrets.token_urlsafe(32), secrets.token_hex(16), free_port()
    with RedisServer(folder / "redis") as redis:
        environ = {
            **os.environ,
            "BASELINE_REDIS": f"redis://127.0.0.1:{redis.port}",
            "BASELINE_PEPPER": pepper,
            "BASELINE_KEY_HASH": hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest(),
            "BASELINE_STYLE": style,
        }
        command = [str(python.parent / "gunicorn"), "app:app", "--workers", "1", "--bind", f"127.0.0.1:{port}"]
        command += ["--worker-class", "uvicorn_worker.UvicornWorker", "--log-level", "warning", "--chdir", str(_HERE)]
        web = subprocess.Popen(leashed(*command), env=environ)
        try:
            _until_answers(port, web)
            yield Baseline(port, key, web.pid, redis.pid)
        finally:
            web.terminate()
            web.wait(20)


def _ready() -> Path:
    """The environment's interpreter."""
    python, wanted = _VENV / "bin" / "python", (_HERE / "requirements.txt").read_text()
    stamp = _VENV / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("installing the baseline into .tools/baseline ...", file=sys.stderr)
        venv.create(_VENV, clear=True, with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--quiet", "-r", _HERE / "requirements.txt"], check=True
        )
        stamp.write_text(wanted)
    return python


def _until_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the baseline did not start")


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
