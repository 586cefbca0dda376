"""A redis-server of a benchmark's own, on the loopback."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.debian import program
from tests.support.leash import leashed
from tests.support.nats_server import free_port

_PACKAGES = ("redis-tools", "redis-server", "libjemalloc2", "liblzf1", "libatomic1")
_START_S = 20.0


class RedisServer:
    """A context manager. Each write is in its append-only file at once and on the disk within a second, as redis has it
    where jobs must not be lost; that is what nats-server does by default, with a longer time.

    Attributes:
        port: where it listens.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> RedisServer:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = program("redis-server", _PACKAGES)
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "logfile": str(self._folder / "redis.log"),
        }
        given = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(leashed(str(found.path), *given), env=found.environ)
        until = time.monotonic() + _START_S
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
