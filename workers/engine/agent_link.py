"""Rank 0's end of the link to its agent. Loads no torch: it is there before anything heavy is imported."""

from __future__ import annotations

import os
import queue
import socket
import threading
from pathlib import Path
from typing import assert_never

from shared.errors import GenfleetError
from workers import link
from workers.link import Cancel, Frame, FromAgent, Quit, Run


class AgentLink:
    """Rank 0's end of the link: sends frames, queues runs, and remembers which job is cancelled."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._cancelled: set[tuple[str, int]] = set()
        self.frames: queue.Queue[Run | Quit] = queue.Queue()

    def send(self, frame: Frame) -> None:
        """Send one frame; the process ends if the agent is gone."""
        try:
            self._socket.sendall(link.pack(frame))
        except OSError:
            _vanish()

    def listen(self) -> None:
        """Read frames for ever, in a thread."""
        threading.Thread(target=self._read, name="link", daemon=True).start()

    def is_cancelled(self, run: Run) -> bool:
        """Whether the agent asked to stop that run."""
        return (run.job, run.epoch) in self._cancelled

    def answered(self, run: Run) -> None:
        """That run has its answer: a cancel for it means nothing any more."""
        self._cancelled.discard((run.job, run.epoch))

    def _read(self) -> None:
        try:
            while True:
                self._take(link.receive_from_agent(self._socket))
        except GenfleetError:
            _vanish()

    def _take(self, frame: FromAgent) -> None:
        match frame:
            case Run() | Quit():
                self.frames.put(frame)
            case Cancel(job=job, epoch=epoch):
                self._cancelled.add((job, epoch))
            case _:
                assert_never(frame)


def _vanish() -> None:
    """The agent is gone: there is nobody to answer to, and a collective may be in the way of an orderly end."""
    os._exit(1)
