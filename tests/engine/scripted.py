"""A scripted agent: the other end of the link of a real group of ranks, over a real Unix socket."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from shared.messages import JobRequest
from tests.support.framed import framed
from workers import link

ROOT = Path(__file__).resolve().parents[2]
F = TypeVar("F", bound=link.Frame)
_LENGTH = struct.Struct(">I")


class Group:
    """A launched group and the frames it sends.

    Args:
        folder: for the socket, the pool file and the ranks' output.
        pool: text of the pool file.
        width: ranks; above 1 they are launched by torchrun.
        bound_s: seconds that any one frame may take to come.
    """

    def __init__(self, folder: Path, pool: str, width: int = 1, bound_s: float = 300.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.frames = folder, list[link.FromRank]()
        (folder / "pool.toml").write_text(pool)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / "s"))
        listener.listen(1)
        listener.settimeout(bound_s)
        rank = ["-m", "workers.engine.rank", "--link", str(folder / "s"), "--pool", str(folder / "pool.toml")]
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(width)]
        torchrun += ["--rdzv-backend", "static", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        torchrun += ["--max-restarts", "0"]
        self._log = (folder / "ranks.log").open("wb")
        self.launched_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *(torchrun if width > 1 else []), *rank],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._socket, _ = listener.accept()
        self._socket.settimeout(bound_s)
        listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self.wait()
        self._log.close()

    def send(self, frame: link.Frame) -> None:
        """Send a frame as the agent would."""
        self._socket.sendall(link.pack(frame))

    def next(self) -> link.FromRank:
        """The next frame of rank 0."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        frame = link.unpack_from_rank(self._read(length))
        self.frames.append(frame)
        return frame

    def until(self, kind: type[F], accept: Callable[[F], bool] = lambda _: True) -> F:
        """Read on until a frame of that kind that is accepted."""
        while True:
            frame = self.next()
            if isinstance(frame, kind) and accept(frame):
                return frame

    def answer(self, job: str) -> link.FromRank:
        """Read on until the answer to that job."""
        while True:
            frame = self.next()
            if isinstance(frame, link.Done | link.Refused | link.Broke | link.Stopped) and frame.job == job:
                return frame

    def run(
        self, job: str, request: JobRequest, inputs: dict[str, str] | None = None, *, decoded: bool = False
    ) -> Path:
        """Send a run; gives its output folder. ``decoded``: the inputs are files of frames already."""
        out = self.folder / "out" / job
        out.mkdir(parents=True)
        inputs = inputs or {}
        inputs = inputs if decoded else framed(request, inputs)
        self.send(link.Run(job=job, epoch=1, request=request, inputs=inputs, out_dir=str(out)))
        return out

    def hang_up(self) -> None:
        """Close the link, as a dead agent's kernel would."""
        self._socket.close()

    def wait(self, bound_s: float = 180.0) -> int:
        """The exit status, once the group has ended by itself."""
        try:
            return self.process.wait(bound_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            raise

    def failure(self) -> dict[str, str]:
        """What a failing rank left."""
        told: dict[str, str] = json.loads((self.folder / "failure.json").read_text())
        return told

    def log(self) -> str:
        """All that the ranks printed."""
        return (self.folder / "ranks.log").read_text()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise link.LinkClosed(self.log()[-3000:])
            data += part
        return data


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
