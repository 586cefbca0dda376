"""A whole fleet of real processes for system tests: what ``genfleet up`` starts, with a handle on each process.

The processes are found by looking at the supervisor's descendants, as an operator would, so the tests know nothing of
how the supervisor keeps its books.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import httpx
import psutil

from tests.support.leash import leashed

ROOT = Path(__file__).resolve().parents[2]
TERMINAL = ("succeeded", "failed", "cancelled")
Role = Literal["gateway", "scheduler", "agent", "rank0", "rank1", "nats"]
T = TypeVar("T")


def until(what: str, probe: Callable[[], T | None], bound_s: float = 60.0) -> T:
    """Ask until the probe gives something true; fail the test with ``what`` after the bound."""
    deadline = time.monotonic() + bound_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"within {bound_s:.0f} s: {what}")


class Fleet:
    """``genfleet up`` on free ports, in a folder of its own; a context manager.

    Attributes:
        url: where the gateway answers.
    """

    def __init__(self, data_dir: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._options = options
        self._env = env or {}
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        up = [sys.executable, "-m", "deploy.cli", "up", "--port", "0", "--data-dir", str(self.data_dir)]
        command = leashed(*up)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
        log = (self.data_dir.parent / f"{self.data_dir.name}.log").open("w")
        self._process = subprocess.Popen(
            [*command, *self._options],
            cwd=ROOT,
            env={**environ, **self._env},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        log.close()
        try:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            assert "http://" in line, f"`genfleet up` said {line!r}; its log: {self.log()[-4000:]}"
            self.url = "http://" + line.split("http://", 1)[1].split()[0].rstrip("/.")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log(self) -> str:
        """What the supervisor wrote on stderr."""
        return (self.data_dir.parent / f"{self.data_dir.name}.log").read_text()

    def stop(self, bound_s: float = 60.0) -> int:
        """SIGTERM to the supervisor; its exit code. Nothing of the fleet is left alive afterwards."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is not None:
            if process.stdout is not None:
                process.stdout.close()
            return process.returncode
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            code = process.wait(bound_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait(10)
        _, alive = psutil.wait_procs(family, timeout=10)
        for left in alive:
            left.kill()
        if process.stdout is not None:
            process.stdout.close()
        assert not alive, f"left alive after `genfleet up` ended: {alive}"
        return code

    # --- processes -------------------------------------------------------------------------------------------------

    def pids(self, role: Role) -> list[int]:
        """Process ids of that role, now."""
        assert self._process is not None
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if _is_role(process, role):
                    found.append(process.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
        return found

    def kill(self, role: Role, sig: signal.Signals = signal.SIGKILL) -> int:
        """Send the signal to the one process of that role; its pid."""
        pid = until(f"a {role} process exists", lambda: self.pids(role))[0]
        os.kill(pid, sig)
        return pid

    def replaced(self, role: Role, pid: int, bound_s: float = 60.0) -> int:
        """Wait until another process has that role; its pid."""
        return until(f"{role} is started again", lambda: [p for p in self.pids(role) if p != pid], bound_s)[0]

    # --- the API ---------------------------------------------------------------------------------------------------

    def submit(self, **body: object) -> dict[str, object]:
        """Submit a job, trying again (with the same Idempotency-Key) while the fleet answers 5xx or not at all."""
        key = os.urandom(8).hex()

        def attempt() -> dict[str, object] | None:
            try:
                answer = httpx.post(f"{self.url}/v1/jobs", json=body, headers={"Idempotency-Key": key}, timeout=10)
            except httpx.TransportError:
                return None
            if answer.status_code >= 500:
                return None
            assert answer.status_code == 202, answer.text
            return dict(answer.json())

        return until("the submit is answered", attempt)

    def job(self, job: str) -> dict[str, object] | None:
        """The job's view, or None while the fleet does not answer."""
        try:
            answer = httpx.get(f"{self.url}/v1/jobs/{job}", timeout=10)
        except httpx.TransportError:
            return None
        if answer.status_code >= 500:
            return None
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for(
        self, job: str, what: str, accept: Callable[[dict[str, object]], bool], bound_s: float = 120.0
    ) -> dict[str, object]:
        """Wait until the job's view is as wanted."""
        last: dict[str, object] = {}

        def probe() -> dict[str, object] | None:
            view = self.job(job)
            if view is not None:
                last.clear()
                last.update(view)
                if accept(view):
                    return view
            return None

        try:
            return until(what, probe, bound_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {json.dumps(last)[:3000]}") from None

    def finished(self, job: str, bound_s: float = 180.0) -> dict[str, object]:
        """Wait for the job's end."""
        return self.wait_for(job, f"job {job} ends", lambda view: view["state"] in TERMINAL, bound_s)

    def denoising(self, job: str, step: int = 1) -> dict[str, object]:
        """Wait until the job has made that many denoising steps (or has ended)."""

        def far_enough(view: dict[str, object]) -> bool:
            progress = view.get("progress")
            return view["state"] in TERMINAL or (
                view["state"] == "running"
                and isinstance(progress, dict)
                and progress["epoch"] == view["epoch"]
                and progress["step"] >= step
            )

        return self.wait_for(job, f"job {job} reaches step {step}", far_enough)

    def workers(self) -> list[dict[str, object]]:
        """The workers as the gateway shows them."""
        answer = httpx.get(f"{self.url}/v1/workers", timeout=10)
        return list(answer.json()["data"])


def _is_role(process: psutil.Process, role: Role) -> bool:
    line = process.cmdline()
    joined = " ".join(line)
    if role == "nats":
        return bool(line) and "nats-server" in line[0]
    if role in ("rank0", "rank1"):
        if "workers.engine.dummy" in joined:
            return role == "rank0"
        if "torch.distributed.run" in joined or "workers.engine.rank" not in joined:
            return False
        return process.environ().get("RANK", "0") == role[-1]
    module = {"gateway": "gateway", "scheduler": "scheduler", "agent": "workers.agent"}[role]
    return "-m" in line and line[line.index("-m") + 1] == module


class Events:
    """A server-sent-events reader on a job's stream: ``for event in Events(...)`` gives (event, id, data)."""

    def __init__(
        self, url: str, job: str, last_event_id: int | None = None, client: httpx.Client | None = None
    ) -> None:
        """
        Args:
            client: to read with; without one, a new one is made, which takes longer than many a job.
        """
        self._client = client
        self._url = f"{url}/v1/jobs/{job}/events"
        self._headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}

    def __iter__(self) -> Iterator[tuple[str, int | None, dict[str, object]]]:
        stream = httpx.stream if self._client is None else self._client.stream
        with stream("GET", self._url, headers=self._headers, timeout=60) as answer:
            assert answer.status_code == 200, answer.read()
            name, event_id, data = "message", None, ""
            for line in answer.iter_lines():
                if not line:
                    if data:
                        yield name, event_id, json.loads(data)
                    name, event_id, data = "message", None, ""
                elif line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("id:"):
                    event_id = int(line[3:])
                elif line.startswith("data:"):
                    data += line[5:].strip()
