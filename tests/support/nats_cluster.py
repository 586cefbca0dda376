"""Three nats-servers that replicate to each other, each to be killed at will."""

from __future__ import annotations

import secrets
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy import nats_cluster
from shared.settings import Settings
from tests.support.leash import leashed
from tests.support.nats_server import answers, free_port

_START_S = 30.0


class NatsCluster:
    """A context manager. Servers are numbered from 0; ``start`` after ``kill`` is the same server with its store."""

    def __init__(self, folder: Path, binary: Path, size: int = 3) -> None:
        self.token = secrets.token_hex(16)
        self._folder = folder
        self._binary = binary
        self._ports = [free_port() for _ in range(size)]
        self._cluster_ports = tuple(free_port() for _ in range(size))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def settings(self, *first: int) -> Settings:
        """Settings that lead to those servers, or to all of them."""
        ports = [self._ports[number] for number in first] or self._ports
        urls = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        return Settings(nats_url=urls, nats_token=self.token, nats_replicas=3)

    def start(self, number: int) -> None:
        """Start that server and wait until it takes connections. It dies with the thread that calls this."""
        folder = self._folder / f"n{number}"
        folder.mkdir(parents=True, exist_ok=True)
        config, log = folder / "nats.conf", folder / "nats.log"
        config.touch(mode=0o600)
        config.write_text(
            nats_cluster.config(
                name=f"n{number}",
                port=self._ports[number],
                cluster_port=self._cluster_ports[number],
                routes=self._cluster_ports,
                store_dir=folder / "store",
                token=self.token,
            )
        )
        self._processes[number] = subprocess.Popen(leashed(str(self._binary), "-c", str(config), "-l", str(log)))
        until = time.monotonic() + _START_S
        while not answers(self._ports[number]):
            if self._processes[number].poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"nats-server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        """``kill -9``."""
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def __enter__(self) -> Self:
        try:
            for number in range(len(self._ports)):
                self.start(number)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._processes):
            self.kill(number)
