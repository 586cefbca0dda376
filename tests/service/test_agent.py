"""The agent towards the bus: lease, assignments, inputs, results, progress. Scripted rank, fake clock."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared import inputs
from shared.decoding import shape_of
from shared.messages import (
    Accepted,
    Busy,
    CannotServe,
    Failed,
    Held,
    Input,
    Layout,
    ModelCard,
    Parallel,
    Progress,
    Reason,
    Succeeded,
    WorkerState,
    WrongIncarnation,
    decode,
    encode,
)
from shared.topology import MODELS, PROGRESS, RESULTS, WORKERS, model_key
from tests.support.agent_scene import Scene, ready_scene
from tests.support.films import film
from tests.support.gateway import png
from tests.support.scripted_rank import (
    INCARNATION,
    WORKER,
    a_request,
    until,
)
from workers.agent.lease import Superseded
from workers.engine.dummy import card
from workers.link import Broke, Done, OutputFile, Pulse, Refused


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with ready_scene(tmp_path) as scene:
        yield scene


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
    entry = await until(lambda: stream.last.get(model_key(WORKER, "dummy")))
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
    assert not scene.files_left()


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


async def test_every_kind_of_input_becomes_frames_of_its_own(scene: Scene, tmp_path: Path) -> None:
    files = {"video": film(tmp_path / "v.mp4").read_bytes(), "mask": png(8), "one": png(16), "two": png(24)}
    given = {}
    for name, data in files.items():
        stored = await scene.house.artifacts.put(f"inputs/default/{name}", data)
        given[name] = Input(key=stored.key, media_type="", size=len(data), sha256=stored.sha256)
    references = (given["one"], given["two"])
    asked = a_request(num_frames=5, fps=8, video=given["video"], mask=given["mask"], references=references)
    run = await scene.run("job1", request=asked)
    assert set(run.inputs) == {"video", "mask", "references.0", "references.1"}
    shapes = {}
    for name, path in run.inputs.items():
        data = _content(path)
        shape = shape_of(data, len(data), inputs.make(name, asked))
        shapes[name] = (shape.frames, shape.channels, shape.still)
    assert shapes == {
        "video": (5, 3, False),
        "mask": (1, 1, True),
        "references.0": (1, 3, True),
        "references.1": (1, 3, True),
    }
    # What was sent is not there any more: the group never sees it.
    assert sorted(path.name for path in scene.files_left()) == sorted(f"{name}.frames" for name in run.inputs)


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
