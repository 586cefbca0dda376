"""The services under a benchmark, as processes of this machine that die with it, and what processor time each takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from shared.settings import to_environ
from tests.support.fleet import ROOT, until
from tests.support.leash import leashed
from tests.support.nats_server import NatsServer


class Stand:
    """The processes under test.

    Attributes:
        settings: that lead to the broker.
        port: the gateway's.
    """

    def __init__(self, folder: Path, files: Path, server: NatsServer, workers: int, capacity: int) -> None:
        """
        Args:
            folder: of pools and logs.
            files: of artifacts and of jobs' files while they run.
        """
        self._files = files
        self.settings = server.settings()
        self.port = 0
        self._folder = folder
        self._roles: dict[str, list[psutil.Process]] = {"nats-server": [psutil.Process(server.pid)]}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers = workers
        self._capacity = capacity

    def start(self) -> None:
        """Start all and wait until the gateway listens."""
        self._launch("gateway", "gateway", {"port": 0})
        self._launch("scheduler", "scheduler", {})
        for number in range(self._workers):
            pool = self._folder / f"pool-{number}.toml"
            capacity = f"capacity = {self._capacity}\n" if self._capacity > 1 else ""
            pool.write_text(f'model = "dummy"\nname = "bench-{number}"\n{capacity}')
            self._launch("agents", "workers.agent", {"pool": str(pool), "worker": f"bench-{number}"})
        log = self._folder / "gateway-0.log"
        self.port = until("the gateway is ready", lambda: _port(log))

    def _launch(self, role: str, module: str, given: dict[str, object]) -> None:
        number = len(self._roles.setdefault(role, []))
        settings = msgspec.structs.replace(
            self.settings,
            artifacts=str(self._files / "artifacts"),
            runtime_dir=str(self._files / "run"),
            log_file=str(self._folder / f"{role}-{number}.log"),
            **given,
        )
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
        environ |= to_environ(settings) | {"GENFLEET_PORT": str(settings.port)}
        process = subprocess.Popen(leashed(sys.executable, "-m", module), cwd=ROOT, env=environ)
        self._processes.append(process)
        self._roles[role].append(psutil.Process(process.pid))

    def used(self) -> dict[str, float]:
        """Processor seconds by role since each process began."""
        roles = dict(self._roles)
        roles["engines"] = [child for agent in roles["agents"] for child in agent.children(recursive=True)]
        roles["measuring"] = [psutil.Process()]
        return {role: sum(_seconds(process) for process in processes) for role, processes in roles.items()}

    def stop(self) -> None:
        """End all of them."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(log: Path) -> int | None:
    if log.exists():
        for line in log.read_text().splitlines():
            if '"ready"' in line:
                return int(json.loads(line)["url"].rsplit(":", 1)[1])
    return None


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def stand(workers: int, capacity: int, files_in: Path | None = None) -> Iterator[Stand]:
    """The processes, for as long as the block runs; artifacts and jobs' files below ``files_in``, or on the disk."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir=files_in) as files:
        folder = Path(name)
        with NatsServer(folder / "nats") as server:
            made = Stand(folder, Path(files), server, workers, capacity)
            try:
                made.start()
                yield made
            finally:
                made.stop()
