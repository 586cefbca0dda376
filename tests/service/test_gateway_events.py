"""Event streams: every client sees the end, a resumed one misses nothing, a slow one costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import lifecycle
from shared.lifecycle import MAX_TRANSITIONS
from shared.messages import TERMINAL, encode
from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

HEARTBEAT_S = 5.0

#: What a queued job says while no worker is there.
NOBODY = {
    "eta_s": None,
    "eta_error_s": None,
    "why": "no_worker",
    "message": "no worker serves wan-demo",
    "end_s": None,
    "end_error_s": None,
}


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path, Settings(sse_heartbeat_s=HEARTBEAT_S)) as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


async def bounce(fleet: Fleet, job: object, times: int) -> None:
    """Let the job be assigned and handed back that many times."""
    for _ in range(times):
        await fleet.assign(job)
        await fleet.move(job, lambda r, s: lifecycle.requeue(r, "worker_busy", "busy", s, attempt=False))


async def test_a_stream_tells_the_whole_life(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    stream = gw.stream(str(job))
    await settle()
    await fleet.run(job)
    await fleet.progress(job, 1, 4)
    await fleet.finish(job)
    events = await stream.events("transition", "progress")
    assert stream.status == 200
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert [(name, number, data.get("state")) for name, number, data in events] == [
        ("transition", 0, "queued"),
        ("transition", 1, "assigned"),
        ("transition", 2, "running"),
        ("progress", None, None),
        ("transition", 3, "succeeded"),
    ]
    assert events[3][2] == {
        "epoch": 1, "stage": "denoise", "step": 4, "total_steps": 8, "eta_s": 4.0, "fraction": 0.475,
    }  # fmt: skip
    view = await gw.view(str(job))
    assert events[-1][2]["outputs"] == view["outputs"]
    assert events[-1][2]["error"] is None
    assert gw.parts.live.streams.feeds == {}


async def test_a_failure_is_told_with_its_reason(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    stream = gw.stream(str(job))
    await fleet.run(job)
    await fleet.move(job, lambda r, s: lifecycle.fail(r, "out_of_memory", "the device is full", s))
    events = await stream.events("transition")
    assert events[-1][2]["error"] == {"reason": "out_of_memory", "message": "the device is full"}
    assert (await gw.view(str(job)))["error"] == events[-1][2]["error"]


async def test_a_resumed_stream_begins_after_the_last_event(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    stream = gw.stream(job)
    await fleet.assign(job)
    assert [(await stream.event() or ("",))[0] for _ in range(2)] == ["transition", "queue"]
    await stream.vanish()
    await fleet.move(job, lifecycle.run)
    resumed = gw.stream(job, last_event_id=0)
    await settle()
    await fleet.finish(job)
    assert [number for _, number, _ in await resumed.events("transition")] == [1, 2, 3]
    after_the_end = await gw.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "3"})
    assert (after_the_end.status_code, after_the_end.content) == (204, b""), "a browser stops asking"


async def test_a_client_that_reads_slowly_misses_no_transition(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Its progress coalesces; nothing is kept for it."""
    job = str((await gw.submit())["id"])
    stream = gw.stream(job)
    await settle()
    stream.stall()
    await bounce(fleet, job, 5)
    record = await fleet.run(job)
    for step in range(1, 9):
        await fleet.progress(job, record.epoch, step)
    (subscriber,) = gw.parts.live.streams.feeds[job].subscribers
    assert subscriber.progress is not None
    assert subscriber.progress.count(b"event:") == 1
    stream.read_on()
    await settle()
    await fleet.finish(job)
    events = await stream.events("transition", "progress")
    assert [number for name, number, _ in events if name == "transition"] == list(range(14))
    assert [data["step"] for name, _, data in events if name == "progress"] == [8]


async def test_twenty_quick_updates_reach_every_client_to_the_end(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Promise 4. Row 15 of the faults, with some clients that read nothing meanwhile and a bus that coalesces."""
    job = str((await gw.submit())["id"])
    streams = [gw.stream(job) for _ in range(10)]
    await settle()
    for stream in streams[::2]:
        stream.stall()
    gw.broker.coalesce = True
    for _ in range(9):
        await fleet.assign(job)
        await fleet.move(job, lambda r, s: lifecycle.requeue(r, "worker_busy", "busy", s, attempt=False))
    await fleet.complete(job)
    for stream in streams:
        stream.read_on()
        events = await stream.events("transition")
        assert [number for _, number, _ in events] == list(range(22))
        assert events[-1][2]["state"] == "succeeded"


async def test_updates_faster_than_any_reader_end_in_the_terminal_state(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 15, with no turn for the followers between the writes."""
    job = str((await gw.submit())["id"])
    streams = [gw.stream(job) for _ in range(3)]
    bucket = fleet.bus.bucket("jobs")
    entry = await bucket.get(job)
    assert entry is not None
    record, revision = await fleet.record(job), entry.revision
    stamp = lifecycle.Stamp(by="s", at=0.0)
    for _ in range(9):
        record = lifecycle.assign(record, "w1", "w1-1", stamp)
        revision = await bucket.update(job, encode(record), revision)
        record = lifecycle.requeue(record, "worker_busy", "busy", stamp, attempt=False)
        revision = await bucket.update(job, encode(record), revision)
    record = lifecycle.fail(record, "engine_error", "broken", stamp)
    await bucket.update(job, encode(record), revision)
    for stream in streams:
        assert [number for _, number, _ in await stream.events("transition")] == list(range(20))


async def test_a_log_that_was_cut_still_ends(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await bounce(fleet, job, MAX_TRANSITIONS // 2 + 2)
    stream = gw.stream(job, last_event_id=0)
    await settle()
    await gw.client.post(f"/v1/jobs/{job}/cancel")
    numbers = [number for _, number, _ in await stream.events("transition")]
    last = 2 * (MAX_TRANSITIONS // 2 + 2) + 1
    assert numbers == list(range(last - MAX_TRANSITIONS + 1, last + 1))


async def test_progress_of_another_attempt_is_not_told(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    stream = gw.stream(job)
    await fleet.run(job)
    await fleet.move(job, lambda r, s: lifecycle.requeue(r, "worker_lost", "gone", s, attempt=False))
    await fleet.progress(job, 1, 3)
    assert (await gw.view(job))["progress"] is None
    await fleet.progress(job, 2, 5)
    await fleet.run(job)
    await fleet.finish(job)
    told = [data for _, _, data in await stream.events("progress")]
    assert {data["epoch"] for data in told} <= {2}


async def test_progress_that_comes_before_its_transition_is_told_after_it(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    stream = gw.stream(job)
    await settle()
    await fleet.progress(job, 1, 2)
    await fleet.assign(job)
    assert [(await stream.event() or ("",))[0] for _ in range(4)] == ["transition", "queue", "transition", "progress"]
    await stream.vanish()


async def test_a_waiting_client_hears_its_place(gw: GatewayUnderTest, fleet: Fleet) -> None:
    first = await gw.submit()
    await gw.clock.advance(1.0)
    second = await gw.submit()
    stream = gw.stream(str(second["id"]))
    await stream.event()
    assert await stream.event() == ("queue", None, {"position": 2, **NOBODY})
    await gw.client.post(f"/v1/jobs/{first['id']}/cancel")
    await gw.clock.advance(1.0)
    assert await stream.event() == ("queue", None, {"position": 1, **NOBODY})
    await gw.clock.advance(3.0)
    await gw.client.post(f"/v1/jobs/{second['id']}/cancel")
    rest = await stream.events("queue", "transition")
    assert [name for name, _, _ in rest] == ["transition"], "an unchanged place is not told again"


async def test_a_silent_stream_has_heartbeats(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    stream = gw.stream(job)
    await settle()
    assert await stream.raw() == b"retry: 1000\n\n"
    assert (await stream.raw()).count(b"event: transition") == 3
    for _ in range(3):
        await gw.clock.advance(HEARTBEAT_S)
        assert await stream.raw() == b": alive\n\n"
    await stream.vanish()


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_client_that_vanishes_is_forgotten(gw: GatewayUnderTest, fleet: Fleet, stalled: bool) -> None:
    job = str((await gw.submit())["id"])
    stay, leave = gw.stream(job), gw.stream(job)
    await settle()
    assert gw.parts.live.streams.clients == 2
    if stalled:
        leave.stall()
        await fleet.assign(job)
    await leave.vanish()
    await settle()
    assert gw.parts.live.streams.clients == 1
    await stay.vanish()
    await settle()
    assert gw.parts.live.streams.clients == 0
    assert gw.parts.live.streams.feeds == {}


async def test_what_happens_before_the_stream_flows_is_not_missed(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    await fleet.run(job)
    flow = gw.parts.live.streams.events(job, lambda: gw.parts.live.now(job), 0)
    assert await anext(flow) == b"retry: 1000\n\n"
    await fleet.finish(job)
    rest = [chunk async for chunk in flow]
    assert b"succeeded" in rest[-1]


async def test_streams_come_back_after_a_broker_restart(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    stream = gw.stream(job)
    await settle()
    gw.broker.stop()
    await gw.clock.advance(3)
    gw.broker.start()
    await gw.clock.advance(3)
    await fleet.run(job)
    await fleet.progress(job, 1, 2)
    await fleet.finish(job)
    events = await stream.events("transition", "progress")
    assert [number for name, number, _ in events if name == "transition"] == [0, 1, 2, 3]
    assert [data["step"] for name, _, data in events if name == "progress"] == [2]


async def test_streams_end_at_shutdown(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 16 of the faults: what keeps a gateway from ending are open streams."""
    job = str((await gw.submit())["id"])
    streams = [gw.stream(job) for _ in range(3)]
    await settle()
    gw.parts.live.streams.close()
    for stream in streams:
        assert [name for name, _, _ in await stream.events("transition", "queue")] == ["transition", "queue"]
    late = gw.stream(job)
    assert await late.events("transition") == []


async def test_a_deleted_job_ends_its_stream(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = str((await gw.submit())["id"])
    stream = gw.stream(job)
    await settle()
    gw.broker.coalesce = True
    record = lifecycle.cancel(await fleet.record(job), lifecycle.Stamp(by="s", at=0.0))
    assert record.state in TERMINAL
    bucket = fleet.bus.bucket("jobs")
    await bucket.put(job, encode(record))
    await bucket.delete(job)
    names = [name for name, _, _ in await stream.events("transition", "deleted")]
    assert names[0] == "transition"
    assert names[-1] == "deleted" or len(names) == 2


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30])
async def test_a_last_event_id_that_cannot_be_one_is_refused(gw: GatewayUnderTest, last: str) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


async def test_a_stream_of_no_job_is_404(gw: GatewayUnderTest) -> None:
    answer = await gw.client.get(f"/v1/jobs/{'0' * 32}/events")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_many_clients_share_one_encoding(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """Row 17 in small: 300 clients, a third of which never read and a third of which vanish."""
    job = str((await gw.submit())["id"])
    streams = [gw.stream(job) for _ in range(300)]
    await settle()
    for stream in streams[::3]:
        stream.stall()
    await asyncio.gather(*(stream.vanish() for stream in streams[1::3]))
    await fleet.complete(job)
    for stream in streams[2::3]:
        assert [number for _, number, _ in await stream.events("transition")] == [0, 1, 2, 3]
    for stream in streams[::3]:
        await stream.vanish()
    await settle()
    assert gw.parts.live.streams.clients == 0


async def test_previews_are_events_and_a_late_watcher_gets_the_latest(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    running = await fleet.run(job)
    early = gw.stream(str(job))
    await fleet.progress(job, running.epoch, 1)
    await fleet.progress(job, running.epoch, 2, preview=b"look")
    await fleet.progress(job, running.epoch, 3)
    late = gw.stream(str(job))
    await settle()
    await fleet.finish(job)
    for stream in (early, late):
        (seen,) = await stream.events("preview")
        assert seen == (
            "preview",
            None,
            {"epoch": running.epoch, "step": 2, "total_steps": 8, "media_type": "image/jpeg", "image": "bG9vaw=="},
        )


async def test_another_workers_picture_is_not_shown(gw: GatewayUnderTest, fleet: Fleet) -> None:
    job = (await gw.submit())["id"]
    running = await fleet.run(job, "w2")
    stream = gw.stream(str(job))
    await fleet.progress(job, running.epoch, 2, preview=b"not its worker's")
    await fleet.finish(job)
    assert await stream.events("preview") == []


async def test_progress_of_jobs_that_there_are_not_is_forgotten(gw: GatewayUnderTest, fleet: Fleet) -> None:
    """A worker that makes up jobs fills no memory; what came a little before its job stays."""
    running = await fleet.run((await gw.submit())["id"])
    for job in (running.id, "0" * 32, "1" * 32):
        await fleet.progress(job, running.epoch, 1, preview=b"look")
    live = gw.parts.live
    await gw.clock.advance(HEARTBEAT_S)
    assert len(live._progress) == len(live._previews) == 3
    await gw.clock.advance(HEARTBEAT_S)
    assert set(live._progress) == set(live._previews) == {running.id}
    assert live._strange == set()
