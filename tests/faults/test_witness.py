"""The witness and the clients' own account notice what the last records alone would not show."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy.history.check import Kind
from shared import lifecycle, topology
from shared.messages import JobRecord, encode
from tests.core.histories import STAMP, cancelled, failed_attempt, queued, running, succeeded
from tests.faults.clients import Clients, Stream, broken_by
from tests.faults.plan import Job
from tests.faults.witness import Witness
from tests.support.clock import FakeClock, settle
from tests.support.memory_bus import MemoryBroker


async def test_a_second_end_that_hides_in_between_is_seen() -> None:
    bus = MemoryBroker(FakeClock()).connect("fleet")
    jobs = bus.bucket(topology.JOBS.name)
    witness = Witness(bus)
    watching = asyncio.create_task(witness.watch())
    await settle()
    other = replace(succeeded().outputs[0], sha256="bb")
    for record in (queued(), running(), succeeded(), replace(succeeded(), outputs=(other,))):
        await jobs.put("a", encode(record))
        await settle()
    await jobs.put("b", b"{")
    await settle()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert [(finding.kind, finding.job) for finding in witness.found] == [(Kind.REWRITTEN, "a"), (Kind.UNREADABLE, "b")]
    assert witness.revisions == 4


async def test_what_left_the_bucket_has_ended() -> None:
    bus = MemoryBroker(FakeClock()).connect("fleet")
    jobs = bus.bucket(topology.JOBS.name)
    witness = Witness(bus)
    watching = asyncio.create_task(witness.watch())
    await jobs.put("a", encode(queued()))
    await settle()
    assert witness.open({"a"}) == ["a"]
    await jobs.delete("a")
    await settle()
    assert witness.open({"a"}) == []
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_it_says_when_all_have_ended() -> None:
    bus = MemoryBroker(FakeClock()).connect("fleet")
    jobs = bus.bucket(topology.JOBS.name)
    witness = Witness(bus)
    watching = asyncio.create_task(witness.watch())
    ended = asyncio.create_task(witness.ended({"a"}))
    for record in (queued(), running(), succeeded()):
        assert not ended.done()
        await jobs.put("a", encode(record))
        await settle()
    assert ended.done()
    assert witness.open({"a", "b"}) == ["b"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def job(**changes: object) -> Job:
    plain = Job(at_s=0, key="k", body={}, may_fail=False, cancel_after_s=None, watched=False, sent_twice=False)
    return replace(plain, **changes)


GUILTY = failed_attempt(running(queued(max_attempts=1)))


@pytest.mark.parametrize(
    ("asked", "record", "cancel", "promise"),
    [
        (job(), succeeded(), None, None),
        (job(may_fail=True), GUILTY, None, None),
        (job(), cancelled(), "cancelling", None),
        (job(), lifecycle.cancel(queued(), STAMP), "cancelled", None),
        (job(), succeeded(), "succeeded", None),
        (job(), None, None, "promise 1"),
        (job(), GUILTY, None, "promise 1"),
        (job(may_fail=True), succeeded(), None, "promise 1"),
        (job(), cancelled(), None, "promise 2"),
        (job(), succeeded(), "cancelling", "promise 2"),
        (job(may_fail=True), GUILTY, "cancelled", "promise 2"),
    ],
)
async def test_an_end_that_was_not_promised(
    tmp_path: Path, asked: Job, record: JobRecord | None, cancel: str | None, promise: str | None
) -> None:
    clients = Clients([], tmp_path / "ledger", seed=1)
    clients.accepted["k"] = "a"
    if cancel:
        clients.cancels["a"] = cancel
    broken = broken_by(clients, [asked], {} if record is None else {"a": record})
    assert [text.split(":")[0] for text in broken] == ([promise] if promise else [])


async def test_what_was_deleted_and_is_there_and_a_priority_that_was_not_kept(tmp_path: Path) -> None:
    clients = Clients([], tmp_path / "ledger", seed=1)
    clients.accepted["k"] = "a"
    clients.deleted.add("a")
    assert broken_by(clients, [job(deleted=True)], {}) == []
    (text,) = broken_by(clients, [job(deleted=True)], {"a": succeeded()})
    assert text.startswith("promise 1: a was deleted")
    clients.deleted.clear()
    clients.priorities["a"] = succeeded().priority
    assert broken_by(clients, [job()], {"a": succeeded()}) == []
    clients.priorities["a"] += 1
    (text,) = broken_by(clients, [job()], {"a": succeeded()})
    assert text.startswith("promise 3: a was given priority")


async def test_a_job_made_by_a_retry_is_judged_too(tmp_path: Path) -> None:
    clients = Clients([], tmp_path / "ledger", seed=1)
    clients.accepted |= {"k": "a", "k-again": "b"}
    clients.again.append(job(key="k-again"))
    assert broken_by(clients, [job()], {"a": succeeded(), "b": succeeded(running(queued("b")))}) == []
    (text,) = broken_by(clients, [job()], {"a": succeeded()})
    assert text.startswith("promise 1: k-again was never accepted")


@pytest.mark.parametrize(
    ("seen", "whole"),
    [
        ([(0, "queued"), (1, "assigned"), (2, "running"), (3, "succeeded")], True),
        ([(0, "queued"), (2, "running"), (3, "succeeded")], False),
        ([(0, "queued"), (1, "assigned"), (1, "assigned"), (2, "running"), (3, "succeeded")], False),
        ([(0, "queued"), (1, "assigned"), (2, "running")], False),
        ([], False),
    ],
)
async def test_a_stream_that_missed_something(tmp_path: Path, seen: list[tuple[int, str]], whole: bool) -> None:
    clients = Clients([], tmp_path / "ledger", seed=1)
    clients.accepted["k"] = "a"
    clients.streams.append(Stream("a", seen))
    broken = broken_by(clients, [job()], {"a": succeeded()})
    assert [text.split(":")[0] for text in broken] == ([] if whole else ["promise 4"])
