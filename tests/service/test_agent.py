"""The agent towards the bus: lease, assignments, progress, results, cancel, drain. Scripted rank, fake clock."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.lifecycle import Stamp, cancel
from shared.messages import (
    Accepted,
    Busy,
    Cancelled,
    CancelOrder,
    CannotServe,
    Draining,
    DrainOrder,
    Failed,
    Held,
    Input,
    Layout,
    ModelCard,
    Parallel,
    Progress,
    Reason,
    Returned,
    Succeeded,
    WorkerLease,
    WorkerState,
    WrongIncarnation,
    decode,
    encode,
)
from shared.settings import Settings
from shared.topology import MODELS, ORDERS, PROGRESS, RESULTS, WORKERS, cancel_key, drain_key, nudge_subject
from tests.support.clock import FakeClock
from tests.support.memory_bus import Write
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
from workers.agent.lease import Superseded
from workers.engine.dummy import card
from workers.link import Broke, Cancel, Done, LinkClosed, OutputFile, Pulse, Quit, Refused, Run, Stopped
from workers.pool import Pool, PoolLimits

LIMITS = PoolLimits(silence_timeout_s=100_000.0, stop_grace_s=30.0)


@dataclass
class Scene:
    """An agent whose scripted group is ready."""

    house: AgentHouse
    clock: FakeClock
    launcher: ScriptedLauncher
    rank: ScriptedRank

    async def run(self, job: str, epoch: int = 1, **given: object) -> Run:
        """Assign a job and take its Run at rank 0."""
        assert await self.house.assign(job, epoch, **given) == Accepted()  # type: ignore[arg-type]
        frame = await self.rank.hear()
        assert isinstance(frame, Run)
        assert (frame.job, frame.epoch) == (job, epoch)
        return frame

    def done(self, run: Run, **used: int) -> None:
        """Rank 0 answers with one file."""
        (Path(run.out_dir) / "0.png").write_bytes(b"picture")
        file = OutputFile(name="0.png", media_type="image/png", width=64, height=64, num_frames=1, fps=0)
        self.rank.say(Done(job=run.job, epoch=run.epoch, files=(file,), used=dict(used)))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock, launcher = FakeClock(), ScriptedLauncher()
    pool = Pool(model="dummy", limits=LIMITS)
    async with agent_house(clock, launcher, tmp_path, pool=pool, settings=Settings(drain_grace_s=60.0)) as house:
        rank = await launcher.launched()
        await rank.come_up(Layout())
        await house.state(WorkerState.IDLE)
        yield Scene(house, clock, launcher, rank)


# --- lease and models ------------------------------------------------------------------------------------------------


async def test_the_lease_says_what_the_group_is(scene: Scene) -> None:
    lease = scene.house.lease()
    assert lease is not None
    assert (lease.worker, lease.incarnation) == (WORKER, INCARNATION)
    assert (lease.models, lease.layouts, lease.width, lease.full_width) == (("dummy",), (Layout(),), 1, 1)
    assert (lease.device_name, lease.capacity, lease.held, lease.loaded) == ("scripted", 1, (), 1.0)


async def test_the_lease_is_renewed_every_third_of_it(scene: Scene) -> None:
    before = scene.house.lease()
    assert before is not None
    await scene.clock.advance(1.9)
    assert scene.house.lease() == before
    await scene.clock.advance(0.2)
    assert scene.house.lease() == replace(before, beat=before.beat + 1)


async def test_the_models_cards_are_announced_once(scene: Scene) -> None:
    stream = scene.house.broker.streams[MODELS.name]
    entry = await until(lambda: stream.last.get("dummy"))
    assert entry.value is not None
    assert decode(entry.value, ModelCard) == card("dummy")
    await scene.clock.advance(20)
    assert stream.revision == entry.revision


async def test_the_lease_comes_back_after_a_broker_restart(scene: Scene) -> None:
    scene.house.broker.stop()
    await scene.clock.advance(10)
    scene.house.broker.start()
    assert scene.house.lease() is None
    await scene.clock.advance(3)
    lease = scene.house.lease()
    assert lease is not None
    assert lease.state is WorkerState.IDLE


async def test_an_agent_goes_when_another_starts_under_its_name(scene: Scene) -> None:
    mine = scene.house.lease()
    assert mine is not None
    newer = replace(mine, incarnation="i2")
    await scene.house.bus.bucket(WORKERS.name).put(WORKER, encode(newer))
    await scene.clock.advance(3)
    with pytest.raises(Superseded):
        await scene.house.running
    assert scene.house.lease() == newer
    assert scene.rank.killed()


async def test_a_lost_answer_to_a_renewal_is_not_another_agent(scene: Scene) -> None:
    scene.house.broker.lose_answer(WORKERS.name)
    await scene.clock.advance(2.5)
    before = scene.house.lease()
    await scene.clock.advance(2.5)
    after = scene.house.lease()
    assert before is not None
    assert after is not None
    assert after.beat > before.beat
    assert not scene.house.running.done()


# --- assignments -----------------------------------------------------------------------------------------------------


async def test_a_job_runs_to_its_result(scene: Scene) -> None:
    run = await scene.run("job1", epoch=3)
    lease = await scene.house.state(WorkerState.BUSY)
    assert lease.held == (Held(job="job1", epoch=3),)
    assert run.request == a_request()
    await scene.clock.advance(4)
    scene.done(run, steps=3)
    result = await scene.house.result("job1", 3)
    assert (result.worker, result.incarnation, result.ran_s) == (WORKER, INCARNATION, 4.0)
    assert isinstance(result.outcome, Succeeded)
    assert result.outcome.used == {"steps": 3}
    (output,) = result.outcome.outputs
    assert (output.key, output.size, output.media_type, output.width) == ("job1/3/0.png", 7, "image/png", 64)
    assert output.sha256 == hashlib.sha256(b"picture").hexdigest()
    assert (await scene.house.state(WorkerState.IDLE)).held == ()
    assert not list((scene.house.runtime_dir / "jobs").iterdir())


async def test_an_assignment_sent_again_is_accepted_and_runs_once(scene: Scene) -> None:
    run = await scene.run("job1")
    assert await scene.house.send("job1") == Accepted()
    scene.done(run)
    await scene.house.result("job1")
    await scene.house.state(WorkerState.IDLE)
    assert await scene.house.send("job1") == Accepted()
    assert await scene.house.send("job1", 0) == CannotServe(message="epoch 1 of this job has been here already")
    other = await scene.run("job2")
    assert other.job == "job2"


async def test_a_second_job_finds_it_busy(scene: Scene) -> None:
    await scene.run("job1")
    assert await scene.house.assign("job2") == Busy()


async def test_an_assignment_waits_for_a_result_on_its_way(scene: Scene) -> None:
    """The scheduler may see a result, and send the next job, before the agent hears that the result is there."""
    run = await scene.run("job1")
    scene.house.broker.refuse(RESULTS.name)
    scene.done(run)
    await until(lambda: scene.house.metric("genfleet_attempts_total", outcome="succeeded"))
    next_job = asyncio.ensure_future(scene.house.assign("job2"))
    await scene.clock.advance(0.2)
    assert await next_job == Accepted()
    assert scene.house.result_now("job1") is not None


async def test_a_result_that_stays_on_its_way_is_a_job_that_is_held(scene: Scene) -> None:
    run = await scene.run("job1")
    for _ in range(5):
        scene.house.broker.refuse(RESULTS.name)
    scene.done(run)
    await until(lambda: scene.house.metric("genfleet_attempts_total", outcome="succeeded"))
    next_job = asyncio.ensure_future(scene.house.assign("job2"))
    await scene.clock.advance(0.6)
    assert await next_job == Busy()


async def test_another_start_is_told_so(scene: Scene) -> None:
    assert await scene.house.send("job1", incarnation="i0") == WrongIncarnation(incarnation=INCARNATION)


async def test_an_unknown_model_or_layout_cannot_be_served(scene: Scene) -> None:
    reply = await scene.house.assign("job1", request=a_request(model="wan"))
    assert isinstance(reply, CannotServe)
    assert "wan" in reply.message
    reply = await scene.house.assign("job1", request=a_request(parallel=Parallel(ulysses_size=8)))
    assert isinstance(reply, CannotServe)
    assert await scene.house.assign("job1", request=a_request(parallel=Parallel(ulysses_size=1))) == Accepted()


@pytest.mark.parametrize("job", ["a.b", "../x", "", "x" * 65])
async def test_what_is_no_job_id_is_not_run(scene: Scene, job: str) -> None:
    assert isinstance(await scene.house.send(job), CannotServe)


async def test_noise_on_the_assignment_subject_is_answered(scene: Scene) -> None:
    for noise in (b"", b"{", b'{"kind":"assign"}', b"\xff", b"[" * 100_000):
        reply = await scene.house.bus.request(f"worker.{WORKER}.{INCARNATION}.assign", noise, 5.0)
        assert isinstance(decode(reply, CannotServe), CannotServe)


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


# --- inputs ----------------------------------------------------------------------------------------------------------


async def test_inputs_are_local_files(scene: Scene) -> None:
    stored = await scene.house.artifacts.put("inputs/default/abc", b"a photo")
    given = Input(key=stored.key, media_type="image/png", size=7, sha256=stored.sha256)
    run = await scene.run("job1", request=a_request(image=given))
    assert _content(run.inputs["image"]) == b"a photo"
    assert run.inputs["image"].endswith(".png")


@pytest.mark.parametrize(
    ("key", "size", "sha256"),
    [
        ("inputs/default/none", 7, "0" * 64),
        ("inputs/default/abc", 8, ""),
        ("inputs/default/abc", 7, "0" * 64),
        ("../x", 1, ""),
    ],
)
async def test_an_input_that_is_not_the_jobs_is_rejected_for_good(
    scene: Scene, key: str, size: int, sha256: str
) -> None:
    await scene.house.artifacts.put("inputs/default/abc", b"a photo")
    given = Input(key=key, media_type="image/png", size=size, sha256=sha256)
    assert await scene.house.assign("job1", request=a_request(image=given)) == Accepted()
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.final) == (Reason.INPUT_REJECTED, True)
    await scene.run("job2")


# --- the group's answers ---------------------------------------------------------------------------------------------


async def test_a_refused_job_has_failed_for_good(scene: Scene) -> None:
    await scene.run("job1")
    scene.rank.say(Refused(job="job1", epoch=1, reason="input_rejected", message="no picture"))
    result = await scene.house.result("job1")
    assert result.outcome == Failed(reason="input_rejected", message="no picture", final=True)


async def test_a_broken_attempt_may_be_tried_again_and_the_group_goes_on(scene: Scene) -> None:
    await scene.run("job1")
    scene.rank.say(Broke(job="job1", epoch=1, reason="out_of_memory", message="m" * 5000))
    outcome = (await scene.house.result("job1")).outcome
    assert outcome == Failed(reason="out_of_memory", message="m" * 2000, final=False)
    await scene.house.state(WorkerState.IDLE)
    await scene.run("job2")
    assert not scene.rank.killed()


@pytest.mark.parametrize("name", ["../0.png", "/etc/passwd", "none.png", ".hidden", "a/b", "link.png"])
async def test_only_files_in_the_output_folder_are_stored(scene: Scene, name: str) -> None:
    run = await scene.run("job1")
    (Path(run.out_dir) / "link.png").symlink_to("/etc/passwd")
    file = OutputFile(name=name, media_type="image/png", width=1, height=1, num_frames=1, fps=0)
    scene.rank.say(Done(job="job1", epoch=1, files=(file,)))
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert outcome.reason == Reason.ENGINE_ERROR
    assert await scene.house.files("job1") == []


# --- progress --------------------------------------------------------------------------------------------------------


def _step(step: int, total: int = 50) -> Pulse:
    return Pulse(job="job1", epoch=1, stage="denoise", step=step, total_steps=total, eta_s=1.0, step_s=0.5)


async def test_the_first_step_is_seen_at_once_and_the_last_too(scene: Scene) -> None:
    await scene.run("job1")
    scene.rank.say(Pulse(job="job1", epoch=1, stage="encode_text"))
    scene.rank.say(_step(1))

    def at(step: int) -> Progress | None:
        found = scene.house.progress("job1")
        return found if found is not None and found.step == step else None

    first = await until(lambda: at(1))
    assert (first.stage, first.total_steps, first.eta_s, first.worker) == ("denoise", 50, 1.0, WORKER)
    scene.rank.say(_step(2))
    scene.rank.say(_step(50))
    await until(lambda: at(50))


async def test_progress_goes_out_at_most_four_times_in_any_second(scene: Scene) -> None:
    await scene.run("job1")
    times: list[float] = []
    scene.house.broker.after_write = lambda write: (
        times.append(scene.clock.monotonic()) if write.bucket == PROGRESS.name else None
    )
    seen = 0
    for step in range(1, 200):
        scene.rank.say(_step(step, 199))
        await scene.house.heard(step)
        await scene.clock.advance(0.02)
    seen = len(times)
    assert all(times[i + 4] - times[i] >= 1.0 - 1e-9 for i in range(seen - 4))
    assert seen >= 10


async def test_another_jobs_pulse_is_a_sign_of_life_only(scene: Scene) -> None:
    await scene.run("job1")
    scene.rank.say(Pulse(job="job0", epoch=1, stage="denoise", step=1, total_steps=2))
    scene.rank.say(Pulse(job="job1", epoch=2, stage="denoise", step=1, total_steps=2))
    scene.rank.say(_step(3))
    assert (await until(lambda: scene.house.progress("job1"))).step == 3
    assert scene.house.progress("job0") is None


async def test_the_lease_tells_measured_seconds_per_step(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.rank.say(_step(1))
    scene.done(run)
    await scene.house.result("job1")
    assert (await scene.house.state(WorkerState.IDLE)).step_s == {"dummy": 0.5}


# --- cancel and timeout ----------------------------------------------------------------------------------------------


async def _order_cancel(scene: Scene, job: str, epoch: int = 1) -> None:
    key = cancel_key(WORKER, INCARNATION, job, epoch)
    await scene.house.bus.bucket(ORDERS.name).put(key, encode(CancelOrder(job=job, epoch=epoch)))


async def test_a_nudged_cancel_stops_the_job_at_once_and_the_group_goes_on(scene: Scene) -> None:
    await scene.run("job1")
    await _order_cancel(scene, "job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=4))
    assert (await scene.house.result("job1")).outcome == Cancelled()
    await scene.house.state(WorkerState.IDLE)
    await scene.run("job2")
    assert not scene.rank.killed()


async def test_a_cancel_without_its_nudge_is_seen_at_the_next_renewal(scene: Scene) -> None:
    await scene.run("job1")
    await _order_cancel(scene, "job1")
    await scene.clock.advance(2.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_cancel_of_another_epoch_is_nothing(scene: Scene) -> None:
    run = await scene.run("job1", epoch=2)
    await _order_cancel(scene, "job1", 1)
    await scene.clock.advance(5)
    scene.done(run)
    assert isinstance((await scene.house.result("job1", 2)).outcome, Succeeded)


async def test_a_cancel_that_came_before_the_job_stops_it(scene: Scene) -> None:
    await _order_cancel(scene, "job1")
    await scene.run("job1")
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_cancelling_record_is_enough_if_its_order_was_never_written(scene: Scene) -> None:
    await scene.house.send("job1")
    await scene.rank.hear()
    record = await scene.house.write_running("job1")
    await scene.house.write(cancel(record, Stamp(by="gateway", at=0.0)))
    await scene.clock.advance(2.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_group_that_does_not_stop_is_killed_and_launched_again(scene: Scene) -> None:
    await scene.run("job1")
    await _order_cancel(scene, "job1")
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    assert isinstance(await scene.rank.hear(), Cancel)
    await scene.clock.advance(29)
    assert not scene.rank.killed()
    await scene.clock.advance(2)
    assert (await scene.house.result("job1")).outcome == Cancelled()
    assert scene.rank.killed()
    again = await scene.launcher.launched()
    await again.come_up()
    await scene.house.state(WorkerState.IDLE)


async def test_the_run_timeout_counts_from_acceptance_and_is_final(scene: Scene) -> None:
    await scene.run("job1", run_timeout_s=10.0)
    await scene.clock.advance(9.9)
    scene.rank.say(_step(1))
    await scene.clock.advance(0.2)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=1))
    outcome = (await scene.house.result("job1")).outcome
    assert outcome == Failed(reason=Reason.RUN_TIMEOUT, message="it ran longer than 10 s", final=True)


async def test_a_job_that_ends_only_after_its_timeout_has_still_timed_out(scene: Scene) -> None:
    run = await scene.run("job1", run_timeout_s=10.0)
    await scene.clock.advance(10.1)
    scene.done(run)
    outcome = (await scene.house.result("job1")).outcome
    assert isinstance(outcome, Failed)
    assert outcome.reason == Reason.RUN_TIMEOUT


# --- drain -----------------------------------------------------------------------------------------------------------


async def test_stop_lets_the_job_end_and_leaves_in_good_order(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.house.agent.stop()
    lease = await scene.house.state(WorkerState.DRAINING)
    assert lease.held == (Held(job="job1", epoch=1),)
    assert await scene.house.assign("job2") == Draining()
    await scene.clock.advance(50)
    scene.done(run)
    assert await scene.rank.hear() == Quit()
    scene.rank.die(0)
    await asyncio.wait_for(scene.house.running, 30)
    assert isinstance((await scene.house.result("job1")).outcome, Succeeded)
    assert scene.house.lease() is None


async def test_a_job_that_outlasts_the_grace_is_handed_back(scene: Scene) -> None:
    await scene.run("job1")
    scene.house.agent.stop()
    await scene.house.state(WorkerState.DRAINING)
    await scene.clock.advance(60.1)
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)
    scene.rank.say(Stopped(job="job1", epoch=1, step=4))
    assert (await scene.house.result("job1")).outcome == Returned(reason=Reason.WORKER_DRAINING)
    assert await scene.rank.hear() == Quit()
    scene.rank.die(0)
    await asyncio.wait_for(scene.house.running, 30)


async def test_a_second_stop_hands_back_at_once(scene: Scene) -> None:
    await scene.run("job1")
    scene.house.agent.stop()
    scene.house.agent.stop()
    assert await scene.rank.hear() == Cancel(job="job1", epoch=1)


async def test_a_group_that_does_not_quit_is_killed(scene: Scene) -> None:
    scene.house.agent.stop()
    assert await scene.rank.hear() == Quit()
    await scene.clock.advance(10.1)
    await asyncio.wait_for(scene.house.running, 30)
    assert scene.rank.killed()


async def test_a_drain_order_drains_without_leaving_and_may_be_taken_back(scene: Scene) -> None:
    orders = scene.house.bus.bucket(ORDERS.name)
    await orders.put(drain_key(WORKER, INCARNATION), encode(DrainOrder()))
    await scene.house.bus.publish(nudge_subject(WORKER, INCARNATION), b"")
    await scene.house.state(WorkerState.DRAINING)
    assert await scene.house.assign("job1") == Draining()
    await scene.clock.advance(100)
    assert not scene.house.running.done()
    await orders.delete(drain_key(WORKER, INCARNATION))
    await scene.clock.advance(2.1)
    await scene.house.state(WorkerState.IDLE)
    await scene.run("job1")


# --- the broker away -------------------------------------------------------------------------------------------------


async def test_a_result_waits_for_the_broker_and_the_lease_holds_the_job_until_then(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.house.broker.stop()
    scene.done(run)
    await until(lambda: not list((scene.house.runtime_dir / "jobs").iterdir()))
    await scene.clock.advance(60)
    written: list[str] = []

    def note(write: Write) -> None:
        if write.bucket == WORKERS.name and write.value is not None:
            written.extend(["busy" if decode(write.value, WorkerLease).held else "idle"])
        elif write.bucket == RESULTS.name:
            written.append("result")

    scene.house.broker.after_write = note
    scene.house.broker.start()
    await scene.clock.advance(3)
    assert isinstance((await scene.house.result("job1")).outcome, Succeeded)
    await scene.house.state(WorkerState.IDLE)
    assert "idle" not in written[: written.index("result")]
    assert "busy" in written


async def test_a_result_whose_ack_was_lost_is_written_again(scene: Scene) -> None:
    run = await scene.run("job1")
    scene.house.broker.lose_answer(RESULTS.name)
    scene.done(run)
    await scene.house.result("job1")
    await scene.clock.advance(1)
    await scene.house.state(WorkerState.IDLE)
    assert scene.house.broker.streams[RESULTS.name].revision == 2


async def test_the_link_closes_when_the_agent_is_cancelled(scene: Scene) -> None:
    scene.house.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.house.running
    assert scene.rank.killed()
    with pytest.raises(LinkClosed):
        await scene.rank.hear()
