"""The agent with the real dummy engine: real processes, a real socket, the real clock, the bus in memory."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from shared.clock import SystemClock
from shared.messages import Accepted, Busy, Cancelled, Failed, Outcome, Reason, Returned, Succeeded, WorkerState
from shared.settings import Settings
from shared.topology import nudge_subject
from tests.support.scripted_rank import INCARNATION, WORKER, AgentHouse, a_request, agent_house, until
from workers.agent.process import MARK, LocalLauncher
from workers.pool import parse

POOL = 'model = "dummy"\n[limits]\nsilence_timeout_s = 5.0\nstop_grace_s = 2.0\n'
ENDLESS: dict[str, float | str] = {"steps": 1_000_000, "step_ms": 5}


@dataclass
class Scene:
    """An agent whose dummy group is ready."""

    house: AgentHouse
    name: str

    async def outcome(self, job: str, dummy: dict[str, float | str] | None = None, **changes: object) -> Outcome:
        """Run a job to its end; ``changes`` are those to the request."""
        request = a_request(dummy=dummy, **changes)
        assert await self.house.assign(job, request=request) == Accepted()
        return (await self.house.result(job)).outcome

    async def begin(self, job: str, dummy: dict[str, float | str], run_timeout_s: float = 3600.0) -> None:
        """Have a job accepted that pretends so."""
        assert await self.house.assign(job, request=a_request(dummy=dummy), run_timeout_s=run_timeout_s) == Accepted()

    async def stepping(self, job: str) -> None:
        """Wait for the job's first step."""
        await until(lambda: self.house.progress(job), f"first step of {job}")

    async def serves(self, job: str) -> None:
        """The group, or its successor, does a job."""
        await self.house.state(WorkerState.IDLE)
        assert isinstance(await self.outcome(job), Succeeded)

    @property
    def rank(self) -> psutil.Process:
        """The engine's process."""
        (process,) = family(self.name)
        return process


def family(name: str) -> list[psutil.Process]:
    """The living processes of every launch of this name."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(name) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@asynccontextmanager
async def scene_of(tmp_path: Path, text: str) -> AsyncIterator[Scene]:
    """An agent with that pool, once it is idle."""
    path = tmp_path / "pool.toml"
    path.write_text(text)
    pool = parse(text)
    name = f"test-{secrets.token_hex(6)}"
    launcher = LocalLauncher(pool, path, tmp_path / "logs", name)
    settings = Settings(lease_s=1.0, drain_grace_s=0.0)
    async with agent_house(SystemClock(), launcher, tmp_path, pool=pool, settings=settings) as house:
        await house.state(WorkerState.IDLE)
        yield Scene(house, name)
    assert family(name) == []


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_of(tmp_path, POOL) as scene:
        yield scene


async def test_a_job_runs_and_its_picture_is_in_the_store(scene: Scene) -> None:
    outcome = await scene.outcome("job1", {"step_ms": 1})
    assert isinstance(outcome, Succeeded)
    (output,) = outcome.outputs
    assert (output.key, output.media_type, output.width, output.height) == ("job1/1/0.png", "image/png", 64, 64)
    content = b"".join([part async for part in scene.house.artifacts.read(output.key)])
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) == output.size
    assert outcome.used["steps"] == 3


async def test_a_video_that_is_none_does_not_call_itself_one(scene: Scene) -> None:
    outcome = await scene.outcome("job1", {"output_bytes": 1000}, task="text-to-video", n=2)
    assert isinstance(outcome, Succeeded)
    assert [(o.media_type, o.size, o.num_frames) for o in outcome.outputs] == [
        ("application/octet-stream", 1000, 0)
    ] * 2


async def test_a_cancel_stops_it_at_the_next_step_and_the_same_process_goes_on(scene: Scene) -> None:
    pid = scene.rank.pid
    await scene.begin("job1", ENDLESS)
    await scene.stepping("job1")
    await scene.house.order_cancel("job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert (await scene.house.result("job1")).outcome == Cancelled()
    await scene.serves("job2")
    assert scene.rank.pid == pid


async def test_a_group_killed_from_outside_costs_one_attempt(scene: Scene) -> None:
    await scene.begin("job1", ENDLESS)
    await scene.stepping("job1")
    scene.rank.kill()
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.final) == (Reason.GROUP_LOST, False)
    await scene.serves("job2")


@pytest.mark.parametrize(
    ("dummy", "reason"),
    [
        ({"kill_at": 2}, Reason.GROUP_LOST),
        ({"exit_at": 2}, Reason.DEVICE_ERROR),
        ({"hang_at": 2}, Reason.GROUP_HUNG),
        ({"fail": "out_of_memory", "fail_at": 2}, Reason.OUT_OF_MEMORY),
        ({"fail": "device_error", "poison": 1}, Reason.DEVICE_ERROR),
    ],
    ids=["kill", "exit", "hang", "fail", "poison"],
)
async def test_what_goes_wrong_has_a_name_and_the_next_job_works(
    scene: Scene, dummy: dict[str, float | str], reason: Reason
) -> None:
    outcome = await scene.outcome("job1", dummy)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.final) == (reason, False)
    await scene.serves("job2")


@pytest.mark.parametrize("dummy", [{"refuse": "input_rejected"}, {"stepz": 3}, {"steps": "many"}])
async def test_a_refused_job_has_failed_for_good(scene: Scene, dummy: dict[str, float | str]) -> None:
    outcome = await scene.outcome("job1", dummy)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.final) == (Reason.INPUT_REJECTED, True)


async def test_a_job_that_does_not_stop_at_its_timeout_is_killed_with_its_group(scene: Scene) -> None:
    pid = scene.rank.pid
    await scene.begin("job1", ENDLESS | {"deaf": 1}, run_timeout_s=0.3)
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.final) == (Reason.RUN_TIMEOUT, True)
    await scene.serves("job2")
    assert scene.rank.pid != pid


async def test_stop_hands_the_job_back_and_the_group_ends(scene: Scene) -> None:
    await scene.begin("job1", ENDLESS)
    await scene.stepping("job1")
    scene.house.agent.stop()
    outcome = (await scene.house.result("job1")).outcome
    assert getattr(outcome, "reason", None) == Reason.WORKER_DRAINING
    await until(scene.house.running.done, "the agent ends")
    assert family(scene.name) == []


async def test_the_group_has_the_pools_environment_and_none_of_the_agents_secrets(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENFLEET_NATS_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    before = scene.rank
    before.kill()
    await until(lambda: [process for process in family(scene.name) if process.pid != before.pid])
    await scene.house.state(WorkerState.IDLE)
    environ = scene.rank.environ()
    assert "secret" not in environ.values()
    assert environ["WORLD_SIZE"] == "1"
    assert int(environ["OMP_NUM_THREADS"]) >= 1


async def test_the_engine_dies_when_its_parent_does(tmp_path: Path) -> None:
    """The leash alone: a parent that is killed takes along a child that would never end."""
    leash = Path(sys.modules[LocalLauncher.__module__].__file__ or "").with_name("leash.py")
    child = [sys.executable, "-c", "import signal; signal.pause()"]
    parent = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, {str(leash)!r}, str(os.getpid()), *{child!r}], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""
    process = psutil.Popen([sys.executable, "-c", parent], stdout=-1)
    with process.stdout:
        pid = int(process.stdout.readline())
    orphan = psutil.Process(pid)
    await until(lambda: "signal.pause" in " ".join(orphan.cmdline()), "the leash became the child")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    await until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE, "the child is gone")


SEVERAL = "capacity = 3\n" + POOL


@pytest.fixture
async def several(tmp_path: Path) -> AsyncIterator[Scene]:
    """A dummy group that holds three jobs at once."""
    async with scene_of(tmp_path, SEVERAL) as scene:
        yield scene


async def test_one_engine_holds_several_jobs_at_once_and_no_more(several: Scene) -> None:
    for job in ("job1", "job2", "job3"):
        await several.begin(job, ENDLESS)
    for job in ("job1", "job2", "job3"):
        await several.stepping(job)
    assert await several.house.send("job4") == Busy()
    lease = await several.house.state(WorkerState.BUSY)
    assert (lease.capacity, sorted(held.job for held in lease.held)) == (3, ["job1", "job2", "job3"])


async def test_one_of_several_jobs_ends_and_the_others_go_on(several: Scene) -> None:
    await several.begin("job1", ENDLESS)
    await several.begin("job2", ENDLESS, run_timeout_s=0.3)
    assert isinstance(await several.outcome("job3", {"step_ms": 1}), Succeeded)
    outcome = (await several.house.result("job2")).outcome
    assert isinstance(outcome, Failed)
    assert outcome.reason == Reason.RUN_TIMEOUT
    assert several.house.result_now("job1") is None
    assert isinstance(await several.outcome("job4", {"step_ms": 1}), Succeeded)


async def test_a_job_that_poisons_the_group_costs_the_others_no_attempt(several: Scene) -> None:
    await several.begin("job1", ENDLESS)
    await several.stepping("job1")
    outcome = await several.outcome("job2", {"fail": "device_error", "poison": 1, "step_ms": 1})
    assert isinstance(outcome, Failed)
    assert outcome.reason == Reason.DEVICE_ERROR
    assert (await several.house.result("job1")).outcome == Returned(reason=Reason.GROUP_LOST)
    await several.serves("job3")


async def test_a_drain_hands_back_all_of_several_jobs(several: Scene) -> None:
    for job in ("job1", "job2"):
        await several.begin(job, ENDLESS)
        await several.stepping(job)
    several.house.agent.stop()
    for job in ("job1", "job2"):
        assert (await several.house.result(job)).outcome == Returned(reason=Reason.WORKER_DRAINING)
