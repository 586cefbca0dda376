"""A service as a process of its own, watched through what it logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import psutil

from shared.settings import Settings, to_environ
from tests.support.leash import leashed

ROOT = Path(__file__).resolve().parents[2]


class ServiceProcess:
    """``python -m <module>`` with those settings; a context manager that kills it in the end, and it dies with us.

    Attributes:
        started: when it was, on this process's monotonic clock.
    """

    def __init__(self, module: str, settings: Settings, log: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
        environ |= to_environ(settings)
        self._log = log
        self.started = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                leashed(sys.executable, "-m", module), cwd=ROOT, env=environ, stderr=file, stdout=file
            )

    def lines(self) -> list[dict[str, object]]:
        """What it has logged so far."""
        whole = self._log.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.split(b"\n") if line.startswith(b"{")]

    def event(self, name: str) -> dict[str, object] | None:
        """The first line of that event."""
        return next((line for line in self.lines() if line.get("event") == name), None)

    def wait_for(self, name: str, within_s: float = 120.0) -> float:
        """Wait for a line of that event; seconds since the start.

        Raises:
            RuntimeError: it ended, or did not come.
        """
        while self.event(name) is None:
            if self._process.poll() is not None or time.monotonic() - self.started > within_s:
                raise RuntimeError(f"no {name!r}: {self._log.read_text()[-3000:]}")
            time.sleep(0.005)
        return time.monotonic() - self.started

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def send(self, number: signal.Signals) -> None:
        """Send it that signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()
