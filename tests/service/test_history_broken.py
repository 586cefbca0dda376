"""Each thing that can be wrong, written into buckets and store one by one, read back as an operator's check reads it,
and told by its name and the promise that it breaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from deploy.history.check import PROMISE, RESULT_GRACE_S, SWEEP_S, Kind, Submit, check
from deploy.history.reading import read
from shared import lifecycle, topology
from shared.artifacts import Artifacts, open_store
from shared.messages import JobRecord, Reason, State, encode
from tests.core import histories as lives
from tests.support.clock import FakeClock
from tests.support.memory_bus import MemoryBroker

DIGEST = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of b"hello"


class Left:
    """What a fleet leaves behind: a sound job, to which a test adds one that is not."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.bus = MemoryBroker(self.clock).connect("fleet")
        self.artifacts: Artifacts = open_store(str(folder))
        self.submits = [Submit(id="sound", key="sound")]

    async def job(self, record: JobRecord, *, bucket: str = "", files: bool = True) -> None:
        outputs = tuple(replace(output, sha256=DIGEST) for output in record.outputs)
        record = replace(record, outputs=outputs)
        key = topology.archive_key(record.tenant, record.id) if bucket == topology.ARCHIVE.name else record.id
        await self.bus.bucket(bucket or topology.JOBS.name).put(key, encode(record))
        for output in record.outputs if files else ():
            await self.artifacts.put(output.key, b"hello")


def one(kind: Kind, record: JobRecord, *, files: bool = True) -> tuple[Kind, Callable[[Left], Awaitable[None]]]:
    return kind, lambda left: left.job(record, files=files)


async def lost(left: Left) -> None:
    left.submits.append(Submit(id="a"))


async def unreadable(left: Left) -> None:
    await left.bus.bucket(topology.JOBS.name).put("a", b"{")


async def two_for_one_key(left: Left) -> None:
    await left.job(lives.succeeded())
    left.submits += [Submit(id="a", key="sound")]


async def cancel_undone(left: Left) -> None:
    await left.job(lives.succeeded())
    left.submits += [Submit(id="a"), Submit(id="a", cancelled=True)]


async def deletion_undone(left: Left) -> None:
    await left.job(lives.succeeded())
    left.submits += [Submit(id="a"), Submit(id="a", deleted=True)]


async def rewritten(left: Left) -> None:
    await left.job(lives.succeeded())
    await left.job(lives.cancelled(), bucket=topology.ARCHIVE.name)


async def archived_open(left: Left) -> None:
    await left.job(lives.running(), bucket=topology.ARCHIVE.name)


async def file_differs(left: Left) -> None:
    await left.job(lives.succeeded())
    await left.artifacts.put("a/1/0.mp4", b"HELLO")


async def result_left(left: Left) -> None:
    await left.job(lives.succeeded())
    await left.bus.bucket(topology.RESULTS.name).put("w.a.1", b"{}")
    await left.clock.advance(RESULT_GRACE_S + 1)
    await left.job(lives.succeeded(lives.running(lives.queued("later"))))


async def file_left(left: Left) -> None:
    await left.job(lives.cancelled())
    await left.artifacts.put("a/1/0.mp4", b"hello")


def expired_early() -> JobRecord:
    waiting = replace(lives.queued(), start_deadline_s=60.0)
    return lifecycle.fail(waiting, Reason.START_DEADLINE_EXCEEDED, "late", lives.STAMP)


def of_epoch_two() -> JobRecord:
    record = lives.succeeded()
    return replace(record, outputs=(replace(record.outputs[0], key="a/2/0.mp4"),))


def with_outputs(record: JobRecord) -> JobRecord:
    return replace(record, outputs=lives.succeeded().outputs)


HISTORIES: list[tuple[Kind, Callable[[Left], Awaitable[None]]]] = [
    (Kind.LOST, lost),
    (Kind.UNREADABLE, unreadable),
    (Kind.TWO_JOBS_FOR_ONE_KEY, two_for_one_key),
    one(Kind.LOG_GAP, replace(lives.cancelled(), transitions=lives.cancelled().transitions[1:])),
    one(Kind.ILLEGAL_MOVE, lives.entry(lives.running(), State.CANCELLED)),
    one(Kind.UNLIKE_ITS_LOG, replace(lives.cancelled(), epoch=2)),
    one(Kind.EPOCH, lives.entry(lives.cancelling(), State.CANCELLED, epoch=3)),
    one(Kind.SECOND_END, lives.entry(lives.succeeded(), State.FAILED)),
    one(Kind.OPEN_AT_REST, lives.running()),
    (Kind.CANCEL_UNDONE, cancel_undone),
    (Kind.DELETION_UNDONE, deletion_undone),
    one(Kind.TOO_MANY_ATTEMPTS, replace(lives.cancelled(), attempts=4)),
    one(Kind.EXPIRED_EARLY, expired_early()),
    one(Kind.NO_REASON, replace(lives.failed_attempt(lives.running(lives.queued(max_attempts=1))), failure=None)),
    one(Kind.OUTPUTS_MISSING, replace(lives.succeeded(), outputs=())),
    one(Kind.OUTPUTS_UNEXPECTED, with_outputs(lives.cancelled())),
    one(Kind.OUTPUT_OF_OTHER_EPOCH, of_epoch_two()),
    one(Kind.FILE_MISSING, lives.succeeded(), files=False),
    (Kind.FILE_DIFFERS, file_differs),
    (Kind.RESULT_LEFT, result_left),
    (Kind.FILE_LEFT, file_left),
    (Kind.REWRITTEN, rewritten),
    (Kind.ARCHIVED_OPEN, archived_open),
]
#: What comes with one that cannot come alone.
TOGETHER = {Kind.ARCHIVED_OPEN: {Kind.OPEN_AT_REST}}


@pytest.mark.parametrize(("kind", "breaks"), HISTORIES, ids=[str(kind) for kind, _ in HISTORIES])
async def test_a_broken_history_is_told_by_name(
    tmp_path: Path, kind: Kind, breaks: Callable[[Left], Awaitable[None]]
) -> None:
    left = Left(tmp_path)
    await left.job(lives.succeeded(lives.running(lives.queued("sound"))))
    before = await read(left.bus, left.artifacts, contents=True)
    assert check(before, left.submits, at_rest=True) == []
    await breaks(left)
    snapshot = await read(left.bus, left.artifacts, contents=True)
    if kind is Kind.FILE_LEFT:  # it is told at once, and counts after a day
        snapshot = replace(snapshot, now=snapshot.now + SWEEP_S + 1)
    found = check(snapshot, left.submits, at_rest=True)
    assert {finding.kind for finding in found} == {kind} | TOGETHER.get(kind, set())
    assert all(finding.broken for finding in found)
    told = [str(finding) for finding in found if finding.kind is kind]
    assert all(text.startswith(f"broken: promise {PROMISE.get(kind, 1)}: {kind}: ") for text in told)


def test_every_kind_has_a_history() -> None:
    assert [kind for kind, _ in HISTORIES] == list(Kind)


async def test_a_deletion_that_the_leader_still_has_to_finish_is_no_broken_promise(tmp_path: Path) -> None:
    left = Left(tmp_path)
    await left.job(lives.succeeded())
    await left.bus.bucket(topology.DELETED.name).put(topology.archive_key("default", "a"), b"user")
    snapshot = await read(left.bus, left.artifacts)
    asked = [Submit(id="a", deleted=True)]
    assert [(f.kind, f.broken) for f in check(snapshot, asked)] == [(Kind.DELETION_UNDONE, False)]
    assert [(f.kind, f.broken) for f in check(snapshot, asked, at_rest=True)] == [(Kind.DELETION_UNDONE, True)]
