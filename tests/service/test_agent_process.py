"""``python -m workers.agent`` on a real nats-server, as an operator's shell sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from shared import nats_bus
from shared.bus import Bus
from shared.lifecycle import Stamp, assign, born, run
from shared.messages import (
    Accepted,
    Assign,
    AssignReply,
    JobRecord,
    Outcome,
    Reason,
    Result,
    Returned,
    Succeeded,
    WorkerLease,
    WorkerState,
    decode,
    encode,
)
from shared.topology import JOBS, RESULTS, WORKERS, assign_subject, result_key
from tests.support.nats_server import NatsServer, free_port
from tests.support.scripted_rank import BOUND_S, a_request, eventually, until
from workers.agent.process import MARK

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
ENDLESS: dict[str, float | str] = {"steps": 1_000_000, "step_ms": 5}


@dataclass
class Worker:
    """The process, and the test's own connection."""

    process: psutil.Popen
    bus: Bus
    log: Path
    metrics_port: int = 0

    async def lease(self, state: WorkerState) -> WorkerLease:
        """Wait for a lease that says so."""

        async def probe() -> WorkerLease | None:
            entry = await self.bus.bucket(WORKERS.name).get("w1")
            if entry is None or entry.value is None:
                return None
            lease = decode(entry.value, WorkerLease)
            return lease if lease.state is state else None

        return await eventually(probe, f"lease says {state}; log: {self.log}")

    async def begin(self, job: str, **dummy: float | str) -> None:
        """Assign a job at epoch 1."""
        lease = await self.lease(WorkerState.IDLE)
        request = a_request(dummy=dummy)
        stamp = Stamp(by="test", at=0.0)
        record = born(JobRecord(id=job, request=request, payload_hash="", created_at=0.0), stamp)
        record = run(assign(record, "w1", lease.incarnation, stamp), stamp)
        await self.bus.bucket(JOBS.name).put(job, encode(record))
        message = Assign(
            job=job, epoch=1, worker="w1", incarnation=lease.incarnation, request=request, run_timeout_s=600.0
        )
        answer = await self.bus.request(assign_subject("w1", lease.incarnation), encode(message), BOUND_S)
        assert decode(answer, AssignReply) == Accepted()  # type: ignore[arg-type]

    async def outcome(self, job: str) -> Outcome:
        """Wait for its result."""

        async def probe() -> Outcome | None:
            entry = await self.bus.bucket(RESULTS.name).get(result_key("w1", job, 1))
            return None if entry is None or entry.value is None else decode(entry.value, Result).outcome

        return await eventually(probe, f"result of {job}; log: {self.log}")

    def group(self) -> list[psutil.Process]:
        """The living processes that this agent's environment leads to."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK, "").startswith("w1.")
                if marked and str(self.log.parent) in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def agent_process(server: NatsServer, folder: Path, metrics_port: int = 0) -> Iterator[tuple[psutil.Popen, Path]]:
    pool = folder / "pool.toml"
    pool.write_text('model = "dummy"\n[limits]\nstop_grace_s = 5\n')
    log = folder / "worker.log"
    settings = server.settings()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
    environ |= {
        "GENFLEET_NATS_URL": settings.nats_url,
        "GENFLEET_NATS_TOKEN": settings.nats_token,
        "GENFLEET_POOL": str(pool),
        "GENFLEET_WORKER": "w1",
        "GENFLEET_ARTIFACTS": str(folder / "store"),
        "GENFLEET_RUNTIME_DIR": str(folder / "run"),
        "GENFLEET_LEASE_S": "1",
        "GENFLEET_DRAIN_GRACE_S": "0",
        "GENFLEET_WORKER_METRICS_PORT": str(metrics_port),
    }
    with log.open("w") as file:
        process = psutil.Popen([sys.executable, "-m", "workers.agent"], cwd=ROOT, env=environ, stderr=file)
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@asynccontextmanager
async def _worker(server: NatsServer, folder: Path) -> AsyncIterator[Worker]:
    bus = await nats_bus.connect(server.settings(), name="test")
    try:
        port = free_port()
        with agent_process(server, folder, port) as (process, log):
            yield Worker(process, bus, log, port)
    finally:
        await bus.close()


@pytest.fixture
async def worker(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Worker]:
    async with _worker(nats_server, tmp_path) as worker:
        yield worker


async def test_it_says_when_it_is_ready_and_sigterm_hands_the_job_back(worker: Worker) -> None:
    await worker.begin("job1", **ENDLESS)
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.outcome("job1") == Returned(reason=Reason.WORKER_DRAINING)
    await until(lambda: worker.process.poll() is not None, "the agent exits")
    assert worker.process.returncode == 0
    assert worker.group() == []
    entry = await worker.bus.bucket(WORKERS.name).get("w1")
    assert entry is None or entry.value is None
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert [line["worker"] for line in lines if line["event"] == "ready"] == ["w1"]
    about = [line for line in lines if line["event"] == "attempt_ended"]
    assert [(line["job"], line["epoch"]) for line in about] == [("job1", 1)]


async def test_its_metrics_can_be_read(worker: Worker) -> None:
    await worker.begin("job1", step_ms=1)
    await worker.outcome("job1")
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{worker.metrics_port}/metrics")).text
    assert 'genfleet_attempts_total{outcome="succeeded"} 1.0' in text
    assert "genfleet_group_width 1.0" in text


async def test_a_broker_restart_during_a_job_costs_nothing(worker: Worker, nats_server: NatsServer) -> None:
    await worker.begin("job1", steps=40, step_ms=50)
    nats_server.kill()
    nats_server.start()
    assert isinstance(await worker.outcome("job1"), Succeeded)
    await worker.begin("job2", step_ms=1)
    assert isinstance(await worker.outcome("job2"), Succeeded)


async def test_killed_it_leaves_no_group_behind_and_its_successor_serves(
    worker: Worker, nats_server: NatsServer, tmp_path: Path
) -> None:
    await worker.begin("job1", **ENDLESS)
    before = await worker.lease(WorkerState.BUSY)
    assert len(worker.group()) == 1
    worker.process.kill()
    worker.process.wait()
    await until(lambda: worker.group() == [], "the group is gone")
    with agent_process(nats_server, tmp_path) as (process, log):
        successor = Worker(process, worker.bus, log)
        after = await successor.lease(WorkerState.IDLE)
        assert after.incarnation != before.incarnation
        await successor.begin("job2", step_ms=1)
        assert isinstance(await successor.outcome("job2"), Succeeded)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "GENFLEET_POOL"),
        ({"GENFLEET_POOL": "/nowhere/pool.toml"}, "/nowhere/pool.toml"),
        ({"GENFLEET_POOL": "x", "GENFLEET_LEASE": "1"}, "GENFLEET_LEASE"),
    ],
)
def test_what_is_wrong_is_one_line(environ: dict[str, str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "workers.agent"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
