"""Who leads, with real schedulers on the in-memory bus: crash, clean stop, freeze, cut, and the broker's restart."""

from __future__ import annotations

import asyncio

import pytest

from scheduler.leader import Seat
from scheduler.shell import Scheduler
from shared.messages import LeaderLease, State, encode
from shared.topology import LEADER, LEADER_KEY, RESULTS, result_key
from tests.support.clock import FakeClock, settle
from tests.support.memory_bus import Write
from tests.support.scheduling import AlwaysLeads, Room

QUEUED, RUNNING, SUCCEEDED = State.QUEUED, State.RUNNING, State.SUCCEEDED
LEASE_S = 3.0
#: Within this a standby must have taken over (the promise).
TAKEOVER_S = 5.0


def leaders(*schedulers: Scheduler) -> list[str]:
    return [scheduler.name for scheduler in schedulers if scheduler.election.leads()]


async def pair(room: Room) -> tuple[Scheduler, Scheduler]:
    """A leader and its standby, in touch with the broker for a while."""
    first = await room.scheduler("scheduler-1")
    second = await room.scheduler("scheduler-2")
    await room.clock.advance(20.0)
    assert leaders(first, second) == ["scheduler-1"]
    return first, second


async def until_leads(room: Room, scheduler: Scheduler, within_s: float) -> float:
    """Seconds until it leads."""
    start = room.clock.monotonic()
    while not scheduler.election.leads():
        assert room.clock.monotonic() - start < within_s, f"{scheduler.name} does not lead after {within_s} s"
        await room.clock.advance(0.05)
    return room.clock.monotonic() - start


async def test_only_the_leader_writes_and_the_standby_is_warm(room: Room) -> None:
    first, second = await pair(room)
    writers = set()
    room.broker.after_write = lambda write: writers.add((write.connection, write.bucket))
    await room.worker(run_s=1.0)
    jobs = [await room.submit() for _ in range(3)]
    await room.clock.advance(0.1)
    assert set(second.state.jobs) == set(first.state.jobs) == set(jobs)
    for job in jobs:
        await room.until(job, SUCCEEDED)
    assert {bucket for name, bucket in writers if name == "scheduler-2"} == set()
    assert ("scheduler-1", "jobs") in writers
    await room.clock.advance(5.0)
    assert second.state.results == {}
    assert second.state.jobs == {}


async def test_the_standby_takes_over_after_a_crash(room: Room) -> None:
    _, second = await pair(room)
    await room.worker(run_s=1.0)
    await room.kill("scheduler-1")
    job = await room.submit()
    assert await until_leads(room, second, TAKEOVER_S) > LEASE_S / 2
    assert (await room.until(job, SUCCEEDED, within_s=2.0)).epoch == 1


async def test_the_standby_takes_over_at_once_after_a_clean_stop(room: Room) -> None:
    first, second = await pair(room)
    await room.worker(run_s=1.0)
    await first.stop()
    await settle()
    assert leaders(first, second) == ["scheduler-2"]
    job = await room.submit()
    await room.until(job, RUNNING, within_s=0.2)
    room.schedulers.pop("scheduler-1")


class Freezable:
    """The room's clock as one process has it: while that is stopped, none of its sleeps end."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._goes_on = asyncio.Event()
        self._goes_on.set()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def wall(self) -> float:
        return self._clock.wall()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        await self._goes_on.wait()

    def freeze(self) -> None:
        self._goes_on.clear()

    def go_on(self) -> None:
        self._goes_on.set()


async def test_a_leader_that_was_stopped_knows_it_when_it_goes_on(room: Room) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: its first act is to stand down, before any write."""
    clock = Freezable(room.clock)
    first = await room.scheduler("scheduler-1", clock=clock)
    second = await room.scheduler("scheduler-2")
    await room.worker(run_s=1.0)
    await room.clock.advance(20.0)
    assert leaders(first, second) == ["scheduler-1"]
    clock.freeze()
    room.broker.cut("scheduler-1")  # what is sent to a stopped process waits in its socket
    job = await room.submit()
    await until_leads(room, second, TAKEOVER_S)
    wrote: list[tuple[str, str]] = []
    room.broker.before_write = lambda write: wrote.append((write.connection, write.bucket))
    clock.go_on()
    room.broker.mend("scheduler-1")
    await room.until(job, SUCCEEDED)
    await room.clock.advance(30.0)
    assert {name for name, bucket in wrote if bucket == "jobs"} == {"scheduler-2"}
    assert leaders(first, second) == ["scheduler-2"]


async def test_a_leader_that_is_cut_off_stands_down_before_the_standby_takes_over(room: Room) -> None:
    first, second = await pair(room)
    room.broker.cut("scheduler-1")
    both = 0
    for _ in range(100):
        await room.clock.advance(0.05)
        both += len(leaders(first, second)) == 2
    assert both == 0
    assert leaders(first, second) == ["scheduler-2"]
    assert not first.state.ready
    room.broker.mend("scheduler-1")
    await room.clock.advance(30.0)
    assert leaders(first, second) == ["scheduler-2"]


async def test_a_standby_that_is_cut_off_does_not_take_over_when_it_returns(room: Room) -> None:
    first, second = await pair(room)
    room.broker.cut("scheduler-2")
    await room.clock.advance(60.0)
    room.broker.mend("scheduler-2")
    for _ in range(200):
        await room.clock.advance(0.1)
        assert leaders(first, second) == ["scheduler-1"]


@pytest.mark.parametrize("down_s", [0.5, 2.0, 10.0, 60.0])
async def test_the_broker_restarts_and_the_same_one_goes_on_leading(room: Room, down_s: float) -> None:
    """The bucket is empty afterwards: its last holder is the first to write there."""
    first, second = await pair(room)
    room.broker.stop()
    await room.clock.advance(down_s)
    room.broker.start()
    both = without = 0.0
    for _ in range(400):
        await room.clock.advance(0.05)
        both += 0.05 * (len(leaders(first, second)) == 2)
        without += 0.05 * (not leaders(first, second))
    assert leaders(first, second) == ["scheduler-1"]
    assert both == 0.0
    assert without <= 1.0


async def test_the_leader_and_the_broker_die_together_and_the_standby_takes_over(room: Room) -> None:
    _, second = await pair(room)
    room.broker.stop()
    await room.kill("scheduler-1")
    await room.clock.advance(2.0)
    room.broker.start()
    await until_leads(room, second, 2 * LEASE_S + 1.0)


async def test_a_scheduler_alone_that_crashed_leads_again_after_its_old_lease(room: Room) -> None:
    await room.scheduler("scheduler-1")
    await room.clock.advance(5.0)
    await room.kill("scheduler-1")
    again = await room.scheduler("scheduler-2")
    await until_leads(room, again, TAKEOVER_S)


async def test_a_lost_answer_to_a_renewal_costs_nothing(room: Room) -> None:
    first, second = await pair(room)
    for _ in range(10):
        room.broker.lose_answer(LEADER.name)
        await room.clock.advance(1.0)
        room.broker.refuse(LEADER.name)
        await room.clock.advance(1.0)
        assert leaders(first, second) == ["scheduler-1"]


async def test_jumps_of_the_wall_clock_change_nothing(room: Room) -> None:
    """Row 33."""
    first, second = await pair(room)
    for jump in (86_400.0, -200_000.0, 3600.0):
        room.clock.jump_wall(jump)
        await room.clock.advance(10.0)
        assert leaders(first, second) == ["scheduler-1"]


async def test_what_is_not_a_lease_is_written_over(room: Room) -> None:
    first, second = await pair(room)
    await room.bus.bucket(LEADER.name).put(LEADER_KEY, b"not JSON")
    await room.clock.advance(10.0)
    assert leaders(first, second) == ["scheduler-1"]


async def test_three_standbys_and_one_of_them_takes_over(room: Room) -> None:
    schedulers = [await room.scheduler(f"scheduler-{number}") for number in range(4)]
    await room.clock.advance(20.0)
    assert leaders(*schedulers) == ["scheduler-0"]
    await room.kill("scheduler-0")
    for _ in range(100):
        await room.clock.advance(0.05)
        assert len(leaders(*schedulers[1:])) <= 1
    assert len(leaders(*schedulers[1:])) == 1


async def test_results_that_the_dead_leader_did_not_drop_are_dropped_by_the_next(room: Room) -> None:
    _, second = await pair(room)
    await room.worker(run_s=1.0)
    job = await room.submit()

    def dies(write: Write) -> None:
        """Between the end of the job and the removal of its result."""
        if write.bucket == "jobs" and write.key == job and b'"state":"succeeded"' in (write.value or b""):
            room.broker.cut("scheduler-1")

    room.broker.after_write = dies
    await room.until(job, SUCCEEDED)
    await room.kill("scheduler-1")
    assert await room.results() != []
    await until_leads(room, second, TAKEOVER_S)
    await room.clock.advance(15.0)
    assert await room.results() == []


# --- the pure part ---------------------------------------------------------------------------------------------------


def lease(name: str, beat: int) -> LeaderLease:
    return LeaderLease(scheduler=name, beat=beat, lease_s=LEASE_S)


def test_a_redelivered_lease_is_not_a_renewal() -> None:
    seat = Seat("a", LEASE_S, 0.0)
    for now in range(10):
        seat.look(float(now), 100.0 + now)
        seat.seen(lease("b", 7), 7, float(now))
    assert seat.free(10.0)


def test_a_process_that_slept_hears_first_what_it_missed() -> None:
    seat = Seat("a", LEASE_S, 0.0)
    for now in range(10):
        seat.look(float(now), 100.0 + now)
        seat.seen(lease("b", now), now, float(now))
    seat.look(60.0, 160.0)
    assert not seat.free(60.0)
    for tick in range(1, 12):
        seat.look(60.0 + tick * 0.3, 160.0 + tick * 0.3)
    assert seat.free(63.3)


def test_a_write_that_was_long_under_way_gives_what_is_left_of_the_lease() -> None:
    seat = Seat("a", LEASE_S, 0.0)
    seat.held(1, sent=10.0, beat=0)
    assert seat.leads(12.9)
    assert not seat.leads(13.0)


def test_another_ones_lease_ends_ones_own() -> None:
    seat = Seat("a", LEASE_S, 0.0)
    seat.held(1, sent=10.0, beat=0)
    seat.seen(lease("b", 0), 2, 10.5)
    assert not seat.leads(10.5)


class LeadsAfter(AlwaysLeads):
    """An election that is won after it was asked so many times."""

    def __init__(self, asked: int) -> None:
        self._left = asked

    def leads(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("asked", range(16))
async def test_a_result_of_an_ended_job_goes_though_the_lead_is_won_while_the_buckets_are_read(
    room: Room, asked: int
) -> None:
    """Whichever of the two is read first, and whenever between them the lead is won."""
    await room.scheduler("first")
    worker = await room.worker(run_s=1.0)
    job = await room.submit()
    await room.until(job, State.SUCCEEDED)
    await room.clock.advance(1.0)
    await room.kill("first")
    (result,) = worker.results
    await room.bus.bucket(RESULTS.name).put(result_key("w1", job, 1), encode(result))
    await room.scheduler("second", election=LeadsAfter(asked))
    await room.clock.advance(20.0)
    assert await room.results() == []
