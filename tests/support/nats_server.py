"""A real nats-server for one test: its own port, token and store, to be killed and stopped at will."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from deploy import nats
from deploy.nats_credentials import Credentials
from shared.settings import Settings
from tests.support.leash import leashed

_START_S = 20.0


def free_port() -> int:
    """A TCP port on the loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> list[int]:
    """So many of them, each another one."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def answers(port: int) -> bool:
    """Whether a NATS server takes connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe:
            return probe.recv(5) == b"INFO "
    except OSError:
        return False


class NatsServer:
    """A context manager; ``start`` after ``kill`` is the same server with the same store."""

    def __init__(
        self,
        folder: Path,
        binary: Path | None = None,
        store: Path | None = None,
        inside: tuple[str, ...] = (),
        credentials: Credentials | None = None,
        encryption: str = "",
    ) -> None:
        """
        Args:
            store: where it keeps its streams; without it, below the folder.
            inside: a command that runs another one, which is put before the server's.
            credentials: who may do what, as they are when it starts; without them, who has the token may do all.
            encryption: the text of ``deploy.nats_accounts.tls``.
        """
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self._folder = folder
        self._store = store or folder / "store"
        self._inside = inside
        self._credentials = credentials
        self._encryption = encryption
        self.binary = binary or nats.ensure(Path(".tools"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"nats://127.0.0.1:{self.port}"

    def settings(self, service: str = "admin", worker: str = "") -> Settings:
        """Settings that lead to it; as that service or worker, where it tells them apart."""
        if self._credentials is None:
            return Settings(nats_url=self.url, nats_token=self.token)
        return Settings(nats_url=self.url, nats_nkey=self._credentials.seed_file(service, worker).read_text().strip())

    def _configure(self) -> Path:
        path = self._folder / "nats.conf"
        path.touch(mode=0o600)
        token, accounts = self.token, ""
        if self._credentials is not None:
            token, accounts = "", self._credentials.accounts_file.read_text()
        path.write_text(
            nats.config(port=self.port, store_dir=self._store, token=token, accounts=accounts) + self._encryption
        )
        return path

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._configure()
        log = self._folder / "nats.log"
        self._process = subprocess.Popen([*self._inside, *leashed(str(self.binary), "-c", str(config), "-l", str(log))])
        until = time.monotonic() + _START_S
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"nats-server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop_process(self) -> None:
        """SIGSTOP, and wait until all its threads stand still: sockets stay open, nothing answers."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the server ended instead"

    def continue_process(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running().pid

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not running"
        return self._process
