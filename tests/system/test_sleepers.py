"""A worker that sleeps while the fleet goes on without it: stopped processes, on a fleet that stays up."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deploy.history.check import Finding, Submit, check
from deploy.history.reading import read
from shared.artifacts import open_store
from shared.nats_bus import connect
from shared.settings import Settings
from tests.support.fleet import Fleet, until

pytestmark = pytest.mark.system

#: Two seconds and a half: it ends while its agent sleeps, if its rank does not.
JOB = {"prompt": "a", "model": "dummy", "dummy": {"steps": 25, "step_ms": 100}}


def busy_worker(fleet: Fleet) -> str:
    """The name of the worker that has the one job."""
    return until("a worker says it has the job", lambda: [str(w["id"]) for w in fleet.workers() if w["jobs"]])[0]


def agent_of(fleet: Fleet, worker: str) -> psutil.Process:
    agents = [psutil.Process(pid) for pid in fleet.pids("agent")]
    (agent,) = [found for found in agents if found.environ().get("GENFLEET_WORKER") == worker]
    return agent


async def findings(fleet: Fleet, job: str) -> list[Finding]:
    """What the history checker says of that job, warnings included."""
    config = (fleet.data_dir / "nats.conf").read_text()
    address = config.split('listen: "', 1)[1].split('"', 1)[0]
    seed = (fleet.data_dir / "nats" / "admin.nkey").read_text().strip()
    settings = Settings(nats_url=f"nats://{address}", nats_nkey=seed)
    async with asyncio.timeout(60):
        bus = await connect(settings, name="checker")
        try:
            snapshot = await read(bus, open_store(str(fleet.data_dir / "artifacts")), contents=True)
        finally:
            await bus.close()
    return [finding for finding in check(snapshot, [Submit(id=job)]) if finding.job == job]


def files(fleet: Fleet, job: str) -> list[str]:
    folder = Path(fleet.data_dir, "artifacts", job)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("sleeps", ["agent", "machine"])
def test_a_worker_that_sleeps_loses_its_job_and_adds_no_second_result(dummies: Fleet, sleeps: str) -> None:
    """Row 12, and row 11 where the agent alone is stopped: its rank finishes meanwhile, so that it wakes with a result
    of an attempt that was taken from it."""
    job = str(dummies.submit(**JOB)["id"])
    dummies.denoising(job, step=2)
    worker = busy_worker(dummies)
    agent = agent_of(dummies, worker)
    asleep = [agent, *(agent.children(recursive=True) if sleeps == "machine" else [])]
    for process in asleep:
        process.suspend()
    try:
        view = dummies.finished(job)
    finally:
        for process in reversed(asleep):
            with suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGCONT)
    assert view["state"] == "succeeded"
    assert view["attempts"] == 0, "a lost worker is nobody's attempt"
    assert view["epoch"] == 2
    until(f"{worker} is back", lambda: [w for w in dummies.workers() if w["id"] == worker and w["state"] == "idle"])
    until("its files are gone", lambda: files(dummies, job) and all(f.startswith("2/") for f in files(dummies, job)))
    assert asyncio.run(findings(dummies, job)) == []
    again = dummies.job(job)
    assert again is not None
    assert (again["epoch"], again["outputs"], again["transitions"]) == (2, view["outputs"], view["transitions"])
