"""What operators write into ``control`` and what the leader writes beside jobs, through the real shell."""

from __future__ import annotations

from scheduler.events import ControlSeen, Event
from scheduler.ledger import Ledger
from shared.bus import Entry
from shared.messages import (
    Failed,
    QueueControl,
    State,
    TenantLimits,
    TenantUsage,
    WorkerControl,
    WorkerQuarantine,
    decode,
    encode,
)
from shared.topology import CONTROL, QUEUE_CONTROL, USAGE, quarantine_control, tenant_control, worker_control
from tests.support.scheduling import Room

QUEUED, RUNNING, SUCCEEDED = State.QUEUED, State.RUNNING, State.SUCCEEDED
BROKE = Failed(reason="device_error", message="lost")


async def test_hold_and_release_outlive_the_scheduler(room: Room) -> None:
    await room.bus.bucket(CONTROL.name).put(QUEUE_CONTROL, encode(QueueControl(held=True)))
    await room.scheduler()
    await room.worker()
    await room.submit("a")
    await room.clock.advance(2.0)
    assert (await room.record("a")).state is QUEUED
    await room.kill()
    await room.scheduler(name="scheduler-2")
    await room.clock.advance(10.0)
    assert (await room.record("a")).state is QUEUED
    await room.bus.bucket(CONTROL.name).put(QUEUE_CONTROL, encode(QueueControl()))
    await room.until("a", RUNNING)


async def test_a_drained_worker_finishes_and_takes_no_more(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(name="w1")
    await room.submit("a")
    await room.until("a", RUNNING)
    control = room.bus.bucket(CONTROL.name)
    await control.put(worker_control("w1"), encode(WorkerControl(worker="w1", drained=True)))
    await room.submit("b")
    await worker.finish("a")
    await room.until("a", SUCCEEDED)
    await room.clock.advance(5.0)
    assert (await room.record("b")).state is QUEUED
    await control.put(worker_control("w1"), encode(WorkerControl(worker="w1")))
    await room.until("b", RUNNING)


async def test_a_tenants_limit_holds_its_jobs_back(room: Room) -> None:
    await room.bus.bucket(CONTROL.name).put(
        tenant_control("default"), encode(TenantLimits(tenant="default", max_running=1))
    )
    await room.scheduler()
    worker = await room.worker(capacity=4)
    await room.submit("a")
    await room.submit("b")
    await room.until("a", RUNNING)
    await room.clock.advance(2.0)
    assert (await room.record("b")).state is QUEUED
    await worker.finish("a")
    await room.until("b", RUNNING)


async def test_what_a_tenant_used_is_written_down_and_read_again(room: Room) -> None:
    await room.scheduler()
    await room.worker(run_s=4.0)
    await room.submit("a")
    await room.until("a", SUCCEEDED)
    await room.clock.advance(10.0)
    entry = await room.bus.bucket(USAGE.name).get("default")
    assert entry is not None
    usage = decode(entry.value or b"", TenantUsage)
    ran_s = (await room.record("a")).ran_s
    assert ran_s is not None
    assert usage.device_s == round(ran_s, 3)
    await room.kill()
    again = await room.scheduler(name="scheduler-2")
    await room.clock.advance(1.0)
    assert again.state.shares.tenant("default").device_s == usage.device_s


async def test_a_quarantine_is_written_down_and_found_again(room: Room) -> None:
    await room.scheduler()
    worker = await room.worker(name="w1")
    await room.worker(name="w2", capacity=0)  # full; a model's last worker would be spared
    for name in ("a", "b", "c"):
        await room.submit(name, max_attempts=1)
        await room.until(name, RUNNING)
        await worker.finish(name, BROKE)
        await room.until(name, State.FAILED)
    entry = await room.bus.bucket(CONTROL.name).get(quarantine_control("w1"))
    assert entry is not None
    found = decode(entry.value or b"", WorkerQuarantine)
    assert (found.failures, found.reason, found.rest_s) == (3, "device_error", 60.0)
    await room.kill()
    await room.scheduler(name="scheduler-2")
    await room.submit("d")
    await room.clock.advance(30.0)
    assert (await room.record("d")).state is QUEUED
    await room.bus.bucket(CONTROL.name).put(quarantine_control("w1"), encode(WorkerQuarantine(worker="w1")))
    await room.until("d", RUNNING)


async def test_a_wish_that_is_brought_once_more_does_not_undo_a_later_one(room: Room) -> None:
    scheduler = await room.scheduler()
    seen: list[Event] = []
    ledger = Ledger(
        room.bus, room.clock, scheduler.state.shares, lambda: False, lambda _: 0.0, seen.append, lambda _: True
    )

    def entry(revision: int, *, held: bool) -> Entry:
        return Entry(QUEUE_CONTROL, encode(QueueControl(held=held)), revision, 0.0)

    def wishes() -> list[bool]:
        controls = [event.control for event in seen if isinstance(event, ControlSeen)]
        return [control.held for control in controls if isinstance(control, QueueControl)]

    for revision, held in ((1, False), (2, True), (1, False), (2, True)):
        ledger.see_control(entry(revision, held=held), True)
    assert wishes() == [False, True]
    ledger.made_anew(CONTROL.name)
    ledger.see_control(entry(1, held=False), False)
    assert wishes() == [False, True, False], "a bucket made anew counts from one"
