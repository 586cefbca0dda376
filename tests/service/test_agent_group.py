"""The agent towards its group: launches, losses, silence, garbage on the link, narrower widths. Scripted rank."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.messages import Accepted, Busy, CannotServe, Failed, Reason, WorkerState
from tests.support.clock import FakeClock
from tests.support.scripted_rank import AgentHouse, ScriptedLauncher, ScriptedRank, agent_house, until
from workers.engine.dummy import card
from workers.link import Broke, CannotLoad, Done, Hello, LinkClosed, Loading, Pulse, Quit, Ready, Run, pack
from workers.pool import Pool, PoolLimits

LIMITS = PoolLimits(load_timeout_s=600.0, silence_timeout_s=100.0, launch_attempts=2)


class StoppableClock(FakeClock):
    """A clock that goes on while this process does not."""

    def leap(self, seconds: float) -> None:
        """The process was stopped for so long: every timer is late."""
        self._now += seconds


@pytest.fixture
def clock() -> StoppableClock:
    return StoppableClock()


@pytest.fixture
def launcher() -> ScriptedLauncher:
    return ScriptedLauncher()


@pytest.fixture
async def house(clock: FakeClock, launcher: ScriptedLauncher, tmp_path: Path) -> AsyncIterator[AgentHouse]:
    async with agent_house(clock, launcher, tmp_path, pool=Pool(model="dummy", limits=LIMITS)) as house:
        yield house


async def up(house: AgentHouse, launcher: ScriptedLauncher) -> ScriptedRank:
    """The next launch, ready."""
    rank = await launcher.launched()
    await rank.come_up()
    await house.state(WorkerState.IDLE)
    return rank


async def running(house: AgentHouse, rank: ScriptedRank, job: str = "job1") -> Run:
    """A job that rank 0 has been given."""
    assert await house.assign(job) == Accepted()
    frame = await rank.hear()
    assert isinstance(frame, Run)
    return frame


async def next_launch(
    house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher, delay_s: float, reason: str = "group_lost"
) -> ScriptedRank:
    """The launch after the end of the last one, which comes after that delay and not before."""
    launches = len(launcher.all)
    if delay_s:
        await until(lambda: house.metric("genfleet_group_ends", reason=reason) == launches)
        await clock.advance(delay_s - 0.1)
        assert len(launcher.all) == launches
        await clock.advance(0.2)
    return await launcher.launched()


def failed(outcome: object) -> tuple[str, bool]:
    assert isinstance(outcome, Failed)
    return outcome.reason, outcome.final


# --- the socket ------------------------------------------------------------------------------------------------------


async def test_the_socket_is_for_this_user_alone(house: AgentHouse, launcher: ScriptedLauncher) -> None:
    rank = await launcher.launched()
    await until(lambda: stat.S_IMODE(rank.link.stat().st_mode) == 0o600)
    assert stat.S_ISSOCK(rank.link.stat().st_mode)
    assert stat.S_IMODE(rank.link.parent.stat().st_mode) == 0o700


async def test_a_deep_runtime_folder_is_no_trouble(
    clock: FakeClock, launcher: ScriptedLauncher, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    async with agent_house(clock, launcher, deep) as house:
        await up(house, launcher)


async def test_there_is_one_connection_to_a_life(house: AgentHouse, launcher: ScriptedLauncher) -> None:
    rank = await up(house, launcher)
    reader, writer = await asyncio.open_unix_connection(rank.link)
    writer.write(pack(Hello(pid=2, width=1, device="cpu", device_name="stranger")))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    run = await running(house, rank)
    rank.say(Done(job=run.job, epoch=run.epoch, files=()))
    await house.result("job1")


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff" * 64,
        b"\0\0\0\x01\xc1",
        pack(Quit()),
        pack(Done(job="x", epoch=1, files=())),
        pack(Hello(pid=1, width=1, device="", device_name="")),
    ],
    ids=["http", "length", "msgpack", "agent's frame", "answer to nothing", "hello again"],
)
async def test_garbage_ends_the_group_and_another_follows(
    house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher, noise: bytes
) -> None:
    rank = await up(house, launcher)
    rank.say_bytes(noise)
    await until(rank.killed)
    await up(house, launcher)


async def test_the_first_frame_is_hello(house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher) -> None:
    rank = await launcher.launched()
    await rank.connect()
    rank.say(Ready(cards=(card("dummy"),), layouts=()))
    await until(rank.killed)
    with pytest.raises(LinkClosed):
        await rank.hear()


# --- losses ----------------------------------------------------------------------------------------------------------


async def test_a_group_that_dies_costs_the_attempt_and_comes_back_at_once(
    house: AgentHouse, launcher: ScriptedLauncher
) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    rank.die(-9)
    assert failed((await house.result("job1")).outcome) == (Reason.GROUP_LOST, False)
    again = await up(house, launcher)
    run = await running(house, again, "job2")
    again.say(Done(job=run.job, epoch=run.epoch, files=()))
    await house.result("job2")
    assert not rank.link.parent.exists()


async def test_a_rank_that_left_word_gives_the_reason(house: AgentHouse, launcher: ScriptedLauncher) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    failure = {"rank": 3, "reason": "out_of_memory", "message": "tried to allocate 12 GiB"}
    _leave(rank.link, json.dumps(failure).encode())
    rank.die(1)
    outcome = (await house.result("job1")).outcome
    assert outcome == Failed(reason="out_of_memory", message="rank 3: tried to allocate 12 GiB")


@pytest.mark.parametrize("word", [b"", b"{", b"[]", b'{"rank": "x"}', b"\xff\xff", b"[" * 60_000])
async def test_a_damaged_word_is_no_reason(house: AgentHouse, launcher: ScriptedLauncher, word: bytes) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    _leave(rank.link, word)
    rank.die(1)
    assert failed((await house.result("job1")).outcome) == (Reason.GROUP_LOST, False)


async def test_what_was_said_before_the_end_counts(house: AgentHouse, launcher: ScriptedLauncher) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    rank.say(Broke(job="job1", epoch=1, reason="engine_error", message="last words"))
    rank.die(1)
    assert (await house.result("job1")).outcome == Failed(reason="engine_error", message="last words")


async def test_a_poisoned_group_is_replaced(house: AgentHouse, launcher: ScriptedLauncher) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    rank.say(Broke(job="job1", epoch=1, reason="device_error", message="sticky", poisoned=True))
    assert failed((await house.result("job1")).outcome) == (Reason.DEVICE_ERROR, False)
    await until(rank.killed)
    await up(house, launcher)


async def test_a_job_that_arrives_while_the_group_is_away_is_not_taken(
    house: AgentHouse, launcher: ScriptedLauncher
) -> None:
    rank = await up(house, launcher)
    rank.die()
    await house.state(WorkerState.STARTING)
    assert await house.assign("job1") == Busy()


async def test_losses_in_a_row_are_followed_by_ever_later_launches(
    house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher
) -> None:
    rank = await up(house, launcher)
    for delay in (0.0, 1.0, 2.0, 4.0):
        rank.die()
        rank = await next_launch(house, clock, launcher, delay)
        await rank.come_up()
        await house.state(WorkerState.IDLE)
    run = await running(house, rank)
    rank.say(Done(job=run.job, epoch=run.epoch, files=()))
    await house.result("job1")
    rank.die()
    await up(house, launcher)


# --- silence ---------------------------------------------------------------------------------------------------------


async def test_a_silent_group_is_killed_and_launched_again(
    house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher
) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    await clock.advance(60)
    rank.say(Pulse(job="job1", epoch=1, stage="denoise", step=1, total_steps=2, step_s=0.1))
    await house.heard(1)
    await clock.advance(99)
    assert not rank.killed()
    await clock.advance(2)
    assert failed((await house.result("job1")).outcome) == (Reason.GROUP_HUNG, False)
    assert rank.killed()
    await up(house, launcher)


async def test_an_agent_that_was_stopped_itself_does_not_blame_the_group(
    house: AgentHouse, clock: StoppableClock, launcher: ScriptedLauncher
) -> None:
    rank = await up(house, launcher)
    await running(house, rank)
    clock.leap(1000)
    await clock.advance(50)
    assert not rank.killed()
    await clock.advance(60)
    await until(rank.killed)


async def test_a_group_that_is_never_ready_is_killed(
    house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher
) -> None:
    rank = await launcher.launched()
    await rank.connect()
    rank.say(Hello(pid=1, width=1, device="cpu", device_name=""))
    rank.say(Loading(fraction=0.5, what="transformer"))
    await until(lambda: (lease := house.lease()) is not None and lease.loaded == 0.5)
    shown = house.lease()
    assert shown is not None
    assert shown.detail == "loading transformer"
    await clock.advance(599)
    assert not rank.killed()
    await clock.advance(2)
    await until(rank.killed)
    await launcher.launched()


# --- widths ----------------------------------------------------------------------------------------------------------


async def test_a_group_that_cannot_start_comes_up_narrower_and_says_so(
    clock: FakeClock, launcher: ScriptedLauncher, tmp_path: Path
) -> None:
    """Row 31."""
    pool = Pool(model="dummy", width=8, narrowest=2, limits=LIMITS)
    async with agent_house(clock, launcher, tmp_path, pool=pool) as house:
        rank = await launcher.launched()
        seen = [(rank.width, rank.first_device)]
        for delay in (0.0, 1.0, 2.0, 4.0, 8.0):
            rank.die(1)
            rank = await next_launch(house, clock, launcher, delay)
            seen.append((rank.width, rank.first_device))
        assert seen == [(8, 0), (8, 0), (4, 0), (4, 4), (2, 0), (2, 2)]
        await rank.come_up()
        lease = await house.state(WorkerState.IDLE)
        assert (lease.width, lease.full_width) == (2, 8)
        assert "2 of 8 ranks" in lease.detail
        await until(lambda: house.metric("genfleet_group_width") == 2.0)
        assert house.metric("genfleet_group_full_width") == 8.0
        assert house.metric("genfleet_group_launches") == 6.0


async def test_a_group_that_cannot_start_at_any_width_is_broken_and_tried_again(
    clock: FakeClock, launcher: ScriptedLauncher, tmp_path: Path
) -> None:
    pool = Pool(model="dummy", width=1, limits=LIMITS)
    async with agent_house(clock, launcher, tmp_path, pool=pool) as house:
        (await launcher.launched()).die(1)
        (await launcher.launched()).die(1)
        lease = await house.state(WorkerState.BROKEN)
        assert "status 1" in lease.detail
        reply = await house.assign("job1")
        assert isinstance(reply, CannotServe)
        rank = await next_launch(house, clock, launcher, 1.0)
        await rank.come_up()
        assert (await house.state(WorkerState.IDLE)).detail == ""


async def test_a_checkpoint_that_cannot_be_loaded_is_not_tried_in_a_loop(
    house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher
) -> None:
    rank = await launcher.launched()
    await rank.connect()
    rank.say(Hello(pid=1, width=1, device="cpu", device_name=""))
    rank.say(CannotLoad(message="vae: shard 2 of 3 is missing"))
    lease = await house.state(WorkerState.BROKEN)
    assert "vae: shard 2 of 3 is missing" in lease.detail
    rank = await next_launch(house, clock, launcher, 60.0, Reason.CANNOT_SERVE)
    await rank.come_up()
    assert (await house.state(WorkerState.IDLE)).detail == ""


async def test_stop_ends_the_wait_for_a_repair(house: AgentHouse, clock: FakeClock, launcher: ScriptedLauncher) -> None:
    rank = await launcher.launched()
    await rank.connect()
    rank.say(Hello(pid=1, width=1, device="cpu", device_name=""))
    rank.say(CannotLoad(message="gone"))
    await house.state(WorkerState.BROKEN)
    house.agent.stop()
    await asyncio.wait_for(house.running, 30)
    assert house.lease() is None


def _leave(link: Path, content: bytes) -> None:
    (link.parent / "failure.json").write_bytes(content)
