"""Three nats-servers that replicate to each other, each to be killed at will."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from deploy import nats_cluster
from shared.settings import Settings
from tests.support.leash import leashed
from tests.support.nats_server import answers, free_ports

_START_S = 30.0
#: A whole cluster takes some three seconds to agree on a leader. One in about forty counts two servers for good.
_AGREE_S = 15.0
_TRIES = 4


class _Meta(Struct):
    """Who decides where streams are put, as one server sees it."""

    leader: str = ""
    cluster_size: int = 0


class _Jsz(Struct):
    """JetStream's part of a server's monitoring."""

    meta_cluster: _Meta | None = None


class NatsCluster:
    """A context manager. Servers are numbered from 0; ``start`` after ``kill`` is the same server with its store."""

    def __init__(self, folder: Path, binary: Path, size: int = 3) -> None:
        self.token = secrets.token_hex(16)
        self._folder = folder
        self._binary = binary
        ports = free_ports(3 * size)
        self._ports, self._watch_ports = ports[:size], ports[size : 2 * size]
        self._cluster_ports = tuple(ports[2 * size :])
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
            + f'http: "127.0.0.1:{self._watch_ports[number]}"\n'
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
        """Start them all, until they count each other. Of a new cluster's servers the first two may elect a leader who
        takes the third for one without JetStream; then no stream of three replicas finds its peers ("no suitable peers
        for placement"), however long one waits, and the cluster has to be made again (seen with 2.10.27)."""
        for _ in range(_TRIES):
            try:
                for number in range(len(self._ports)):
                    self.start(number)
                if self._agree():
                    return self
            except BaseException:
                self.__exit__(None, None, None)
                raise
            self.__exit__(None, None, None)
            for number in range(len(self._ports)):
                shutil.rmtree(self._folder / f"n{number}")
        raise RuntimeError("the servers never counted each other")

    def _agree(self) -> bool:
        until = time.monotonic() + _AGREE_S
        while time.monotonic() < until:
            seen = [self._meta(number) for number in range(len(self._ports))]
            if len({meta.leader for meta in seen}) == 1 and all(
                meta.leader and meta.cluster_size == len(self._ports) for meta in seen
            ):
                return True
            time.sleep(0.05)
        return False

    def _meta(self, number: int) -> _Meta:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._watch_ports[number]}/jsz", timeout=_START_S) as answer:
            return msgspec.json.decode(answer.read(), type=_Jsz).meta_cluster or _Meta()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._processes):
            self.kill(number)
