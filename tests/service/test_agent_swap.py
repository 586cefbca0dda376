"""A pool of several models: its group is ended and launched anew with another when a job for that comes.

With a scripted rank 0 and made-up time, and at the end with the real dummy engine's processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from shared.messages import (
    Accepted,
    Busy,
    Cancelled,
    CannotServe,
    Failed,
    Parallel,
    Reason,
    Returned,
    Succeeded,
    WorkerLease,
    WorkerState,
)
from shared.settings import Settings
from shared.topology import nudge_subject
from tests.service.test_agent_dummy import Scene, family, scene_of
from tests.support.agent_scene import LIMITS
from tests.support.clock import FakeClock
from tests.support.scripted_rank import (
    INCARNATION,
    WORKER,
    AgentHouse,
    ScriptedLauncher,
    ScriptedRank,
    a_request,
    agent_house,
    until,
)
from workers.link import CannotLoad, Done, Hello, OutputFile, Quit, Run
from workers.pool import OtherModel, Pool

OTHERS = (OtherModel(model="dummy", serve_as="green"), OtherModel(model="dummy", serve_as="blue"))
POOL = Pool(model="dummy", serve_as="red", others=OTHERS, limits=LIMITS)
SLOW_LOAD_S = 1000.0


@dataclass
class Stage:
    """An agent whose scripted group has the model red."""

    house: AgentHouse
    clock: FakeClock
    launcher: ScriptedLauncher
    rank: ScriptedRank

    async def begin(self, job: str, model: str, run_timeout_s: float = 3600.0) -> None:
        request = a_request(model=model)
        assert await self.house.assign(job, request=request, run_timeout_s=run_timeout_s) == Accepted()

    async def swapped_out(self) -> ScriptedRank:
        """The group has been told to quit, has done so, and the next is launched."""
        assert await self.rank.hear() == Quit()
        self.rank.die(0)
        self.rank = await self.launcher.launched()
        return self.rank

    async def come_up(self) -> None:
        others = [name for name in POOL.names if name != self.rank.model]
        await self.rank.come_up_beside(*others, device_memory=7_000)

    async def finish(self, job: str) -> Succeeded:
        run = await self.rank.hear()
        assert isinstance(run, Run)
        (Path(run.out_dir) / "0.png").write_bytes(b"picture")
        file = OutputFile(name="0.png", media_type="image/png", width=64, height=64, num_frames=1, fps=0)
        self.rank.say(Done(job=run.job, epoch=run.epoch, files=(file,)))
        outcome = (await self.house.result(job)).outcome
        assert isinstance(outcome, Succeeded)
        return outcome

    async def lease(self, **fields: object) -> WorkerLease:
        """Wait for a lease that says so."""

        def there() -> WorkerLease | None:
            lease = self.house.lease()
            return lease if lease and all(getattr(lease, name) == value for name, value in fields.items()) else None

        return await until(there, f"lease {fields}")


@asynccontextmanager
async def staged(folder: Path, pool: Pool = POOL) -> AsyncIterator[Stage]:
    clock, launcher = FakeClock(), ScriptedLauncher()
    async with agent_house(clock, launcher, folder, pool=pool, settings=Settings(drain_grace_s=0.0)) as house:
        stage = Stage(house, clock, launcher, await launcher.launched())
        yield stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        await stage.come_up()
        await stage.house.state(WorkerState.IDLE)
        yield stage


async def test_the_lease_says_what_can_be_served_what_is_loaded_how_long_that_took_and_the_memory(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as stage:
        assert stage.rank.model == "red"
        await stage.clock.advance(42.0)
        await stage.come_up()
        lease = await stage.house.state(WorkerState.IDLE)
        assert (lease.models, lease.loaded_models) == (("red", "green", "blue"), ("red",))
        assert lease.load_s == {"red": 42.0}
        assert lease.device_memory == 7_000


async def test_a_job_of_another_model_has_it_loaded_and_the_next_finds_it_there(stage: Stage) -> None:
    await stage.begin("job1", "green")
    rank = await stage.swapped_out()
    assert rank.model == "green"
    await stage.clock.advance(30.0)
    await stage.come_up()
    assert (await stage.finish("job1")).used["load_s"] == 30.0
    lease = await stage.lease(state=WorkerState.IDLE, models=("green", "red", "blue"))
    assert (lease.loaded_models, lease.load_s["green"]) == (("green",), 30.0)
    await stage.begin("job2", "green")
    assert "load_s" not in (await stage.finish("job2")).used
    assert stage.house.metric("genfleet_group_ends_total", reason=Reason.GROUP_LOST) == 0.0


async def test_while_it_loads_the_worker_is_busy_and_holds_the_job(stage: Stage) -> None:
    await stage.begin("job1", "green")
    await stage.swapped_out()
    lease = await stage.lease(state=WorkerState.BUSY, loaded_models=("green",))
    assert [held.job for held in lease.held] == ["job1"]
    assert await stage.house.send("job2", request=a_request(model="green")) == Busy()
    await stage.come_up()
    await stage.finish("job1")


async def test_the_time_that_loading_takes_is_not_the_jobs(stage: Stage) -> None:
    await stage.begin("job1", "green", run_timeout_s=100.0)
    await stage.swapped_out()
    await stage.clock.advance(SLOW_LOAD_S)
    await stage.come_up()
    assert isinstance(await stage.rank.hear(), Run)
    assert stage.house.result_now("job1") is None
    await stage.clock.advance(200.0)
    await until(lambda: stage.house.result_now("job1") or stage.rank.killed(), "the run timeout")
    await stage.clock.advance(200.0)
    outcome = (await stage.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert outcome.reason == Reason.RUN_TIMEOUT


async def test_a_cancel_during_the_swap_is_answered_at_once_and_the_model_is_loaded_all_the_same(stage: Stage) -> None:
    await stage.begin("job1", "green")
    await stage.swapped_out()
    await stage.house.order_cancel("job1")
    await stage.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert (await stage.house.result("job1")).outcome == Cancelled()
    await stage.come_up()
    await stage.lease(state=WorkerState.IDLE, loaded_models=("green",))
    await stage.begin("job2", "green")
    await stage.finish("job2")


async def test_a_model_that_cannot_be_loaded_rests_and_the_one_before_comes_back(stage: Stage) -> None:
    await stage.begin("job1", "green")
    rank = await stage.swapped_out()
    await rank.connect()
    rank.say(Hello(pid=1, width=1, device="cpu", device_name="scripted"))
    rank.say(CannotLoad(message="vae: shard 2 of 3 is missing"))
    assert (await stage.house.result("job1")).outcome == Returned(reason=Reason.GROUP_LOST)
    stage.rank = await stage.launcher.launched()
    assert stage.rank.model == "red"
    await stage.come_up()
    lease = await stage.lease(state=WorkerState.IDLE, loaded_models=("red",))
    assert lease.models == ("red", "blue")
    assert lease.detail == "green: cannot_serve: vae: shard 2 of 3 is missing"
    answer = await stage.house.send("job2", request=a_request(model="green"))
    assert isinstance(answer, CannotServe)
    await stage.clock.advance(70.0)
    lease = await stage.lease(models=("red", "green", "blue"))
    assert lease.detail == ""


async def test_a_first_model_that_cannot_be_loaded_leaves_the_others(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        await stage.rank.connect()
        stage.rank.say(Hello(pid=1, width=1, device="cpu", device_name="scripted"))
        stage.rank.say(CannotLoad(message="no such folder"))
        stage.rank = await stage.launcher.launched()
        assert stage.rank.model == "green"
        await stage.come_up()
        lease = await stage.house.state(WorkerState.IDLE)
        assert (lease.loaded_models, lease.models) == (("green",), ("green", "blue"))


async def test_a_group_that_dies_after_a_swap_comes_back_with_the_same_model(stage: Stage) -> None:
    await stage.begin("job1", "blue")
    await stage.swapped_out()
    await stage.come_up()
    await stage.finish("job1")
    await stage.house.state(WorkerState.IDLE)
    stage.rank.die()
    assert (await stage.launcher.launched()).model == "blue"


async def test_nothing_is_swapped_while_another_job_is_held(tmp_path: Path) -> None:
    several = Pool(model="dummy", serve_as="red", others=OTHERS, limits=LIMITS, capacity=2)
    async with staged(tmp_path, several) as stage:
        await stage.come_up()
        await stage.house.state(WorkerState.IDLE)
        await stage.begin("job1", "red")
        assert await stage.house.send("job2", request=a_request(model="green")) == Busy()
        await stage.begin("job3", "red")


async def test_a_layout_that_the_other_model_turned_out_not_to_have_is_refused(stage: Stage) -> None:
    wide = a_request(model="red", parallel=Parallel(ulysses_size=2))
    assert isinstance(await stage.house.send("job1", request=wide), CannotServe)


# --- the real dummy engine --------------------------------------------------------------------------------------------

TEXT = """
model = "dummy"
serve_as = "red"
others = [{ model = "dummy", serve_as = "green" }]
[limits]
silence_timeout_s = 5.0
stop_grace_s = 2.0
[env]
DUMMY_LOAD_MS = "20"
"""


async def launched(scene: Scene, model: str) -> None:
    """Wait for the process that is to have that model; that of the model before may end while it is looked at."""

    def has(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return model in process.cmdline()
        return False

    await until(lambda: any(has(process) for process in family(scene.name)), f"{model} is launched")


async def test_real_processes_are_swapped_and_only_one_is_left(tmp_path: Path) -> None:
    async with scene_of(tmp_path, TEXT) as scene:
        for job, model, swaps in (("job1", "green", True), ("job2", "green", False), ("job3", "red", True)):
            outcome = await scene.outcome(job, {"step_ms": 1}, model=model)
            assert isinstance(outcome, Succeeded)
            assert ("load_s" in outcome.used) == swaps
            assert model in scene.rank.cmdline()
        lease = await scene.house.state(WorkerState.IDLE)
        assert set(lease.load_s) == {"red", "green"}
        assert min(lease.load_s.values()) >= 0.02


async def test_a_kill_during_the_swap_costs_the_job_no_attempt_and_the_model_before_comes_back(tmp_path: Path) -> None:
    async with scene_of(tmp_path, TEXT + 'DUMMY_HANGS_LOADING = "green"\n') as scene:
        request = a_request(model="green", dummy={"step_ms": 1})
        assert await scene.house.assign("job1", request=request) == Accepted()
        await launched(scene, "green")
        for process in family(scene.name):
            process.kill()
        assert (await scene.house.result("job1")).outcome == Returned(reason=Reason.GROUP_LOST)
        lease = await scene.house.state(WorkerState.IDLE)
        assert lease.loaded_models == ("red",)
        assert "red" in scene.rank.cmdline()


async def test_a_stop_during_the_swap_hands_the_job_back_and_leaves_no_process(tmp_path: Path) -> None:
    async with scene_of(tmp_path, TEXT + 'DUMMY_HANGS_LOADING = "green"\n') as scene:
        assert await scene.house.assign("job1", request=a_request(model="green")) == Accepted()
        await launched(scene, "green")
        scene.house.agent.stop()
        assert (await scene.house.result("job1")).outcome == Returned(reason=Reason.WORKER_DRAINING)
        await until(scene.house.running.done, "the agent ends")
        assert family(scene.name) == []
