"""A group's processes: how they are launched, and how all of them are killed.

torchrun puts every rank into a session of its own, so no process group or session holds them all, and once torchrun
itself is dead its ranks are nobody's descendants. Each launch therefore carries a mark in its environment, which every
descendant inherits: the group is what bears the mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Protocol

import psutil
from msgspec import Struct

from shared.telemetry import log
from workers.pool import Pool, visible_devices

#: The environment variable that marks a group's processes.
MARK = "WORKER_GROUP_MARK"
#: Log files kept of earlier launches.
KEPT_LOGS = 5
#: Seconds that killed processes get to vanish; one in an uninterruptible wait for its device may never.
VANISH_S = 10.0
#: What keeps the libraries of the ranks from the network.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}
#: Outside the range that Linux takes outgoing connections' ports from.
PORTS = range(20000, 32000)

_log = log(__name__)


class Span(Struct, frozen=True):
    """This machine's part of a group that spans several; by default there is one machine only.

    Attributes:
        nodes, node: how many machines, and which of them this is.
        master, port: where torchrun's store on the first of them listens.
        life: token of one life of the group, so that a part never meets another life's store.
    """

    nodes: int = 1
    node: int = 0
    master: str = "127.0.0.1"
    port: int = 0
    life: str = ""


class GroupProcess(Protocol):
    """A launched group."""

    async def wait(self) -> int:
        """Its exit status, once its root process has ended."""
        ...

    async def kill(self) -> None:
        """SIGKILL every process of it and wait until they are gone; harmless when they are."""
        ...


class Launcher(Protocol):
    """Launches groups."""

    async def launch(self, link: Path, width: int, first_device: int, model: str = "") -> GroupProcess:
        """Start a group of ``width`` ranks, whose rank 0 connects to the socket ``link``, with that one of the pool's
        models; ``""``: the pool's only one.

        Raises:
            OSError: it cannot be started.
        """
        ...


class LocalProcess:
    """A group on this machine."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self._process = process
        self._mark = mark

    @property
    def pid(self) -> int:
        """The root process: torchrun, or the dummy engine."""
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        left = await asyncio.to_thread(kill_marked, self._mark)
        if left:
            # In an uninterruptible wait for a device, most likely. Waiting on with them helps nobody.
            _log.error("group_processes_left", pids=left)
        if self._process.pid not in left:
            await self._process.wait()


class LocalLauncher:
    """Launches groups on this machine: torchrun, or the dummy engine for the pool model ``dummy``."""

    def __init__(self, pool: Pool, pool_path: Path, log_dir: Path, name: str) -> None:
        """
        Args:
            pool_path: the file that every rank reads.
            log_dir: where the ranks' output goes, one file per launch.
            name: of this start of this worker; part of the mark.
        """
        self._pool = pool
        self._pool_path = pool_path
        self._log_dir = log_dir
        self._name = name
        self._launches = 0

    async def launch(
        self, link: Path, width: int, first_device: int, model: str = "", span: Span | None = None
    ) -> LocalProcess:
        """As ``Launcher.launch``; with a ``span`` only this machine's part, of ``width`` ranks."""
        self._launches += 1
        mark = f"{self._name}.{self._launches}"
        log_file = await asyncio.to_thread(next_log, self._log_dir)
        command = command_line(self._pool, self._pool_path, link, width, model, span)
        leash = str(Path(__file__).with_name("leash.py"))
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                leash,
                str(os.getpid()),
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env=environment(self._pool, width, first_device, mark, dict(os.environ), span),
                start_new_session=True,
            )
        finally:
            os.close(log_file)
        return LocalProcess(process, mark)


def command_line(
    pool: Pool, pool_path: Path, link: Path, width: int, model: str = "", span: Span | None = None
) -> list[str]:
    """The command that starts a group of this pool, or a machine's part of one, with that one of its models."""
    tail = ["--link", str(link), "--pool", str(pool_path), *(("--serve", model) if model else ())]
    if pool.model == "dummy":
        return [sys.executable, "-m", "workers.engine.dummy", *tail]
    span = span or Span(port=free_port())
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(span.nodes), "--nproc-per-node", str(width)),
        *("--rdzv-backend", "static", "--master-addr", span.master, "--master-port", str(span.port)),
        *("--max-restarts", "0"),
        *(("--node-rank", str(span.node), "--rdzv-id", span.life) if span.nodes > 1 else ()),
        *("-m", "workers.engine.rank", *tail),
    ]


def environment(
    pool: Pool, width: int, first_device: int, mark: str, base: dict[str, str], span: Span | None = None
) -> dict[str, str]:
    """The environment of a group: the agent's without its settings and credentials, and the pool's own."""
    kept = {name: value for name, value in base.items() if not name.startswith(("GENFLEET_", "AWS_"))}
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    kept |= {
        "OMP_NUM_THREADS": str(pool.threads or max(1, cores // width)),
        "PYTHONUNBUFFERED": "1",
        # Whatever a rank needs is on its machine, or it says so: nothing is fetched behind an operator's back.
        **OFFLINE,
        "WORLD_SIZE": str(width),
        MARK: mark,
    }
    if sys.platform == "linux" and is_loopback((span or Span()).master):
        # Gloo otherwise listens wherever the host's name points to.
        kept.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return kept | visible_devices(pool, width, first_device, base) | pool.env


def is_loopback(host: str) -> bool:
    """Whether that name or address is this machine's own for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str = "127.0.0.1") -> int:
    """A port of that address that nobody listened on a moment ago."""
    for port in random.sample(PORTS, 64):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {PORTS.start} and {PORTS.stop}")


def next_log(folder: Path) -> int:
    """A file descriptor of the next launch's log; of the earlier ones, some are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = sorted(folder.glob("group-*.log"))
    number = 1 + (int(earlier[-1].stem.removeprefix("group-")) if earlier else 0)
    for old in earlier[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return os.open(folder / f"group-{number:06d}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that bear this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_marked(mark: str) -> list[int]:
    """SIGKILL all that bear this mark, again while more appear; blocks. The pids that would not go."""
    deadline = time.monotonic() + VANISH_S
    while (alive := marked(mark)) and time.monotonic() < deadline:
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # Not psutil's wait: it would reap our own child, for whose exit status the event loop then waits for ever.
        time.sleep(0.02)
    return [process.pid for process in alive]
