"""Files that nothing refers to are removed a day after they were written, and no others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from scheduler import sweep
from scheduler.metrics import Metrics
from scheduler.sweep import Sweep
from shared import lifecycle
from shared.artifacts import Artifacts, open_store
from shared.lifecycle import Stamp
from shared.messages import Input, JobRecord, Output, Succeeded, encode
from shared.topology import ARCHIVE, JOBS, archive_key
from tests.support.clock import FakeClock
from tests.support.memory_bus import MemoryBroker, MemoryBus
from tests.support.scheduling import REQUEST

STAMP = Stamp(by="test", at=0.0)
DAY_S = 86_400.0


def job(name: str, image: str = "") -> JobRecord:
    request = REQUEST
    if image:
        given = Input(key=f"inputs/default/{image}", media_type="image/png", size=1, sha256=image)
        request = replace(request, image=given)
    return lifecycle.born(JobRecord(id=name, request=request, payload_hash="", created_at=0.0), STAMP)


def running(name: str, epoch: int, image: str = "") -> JobRecord:
    record = job(name, image)
    for turn in range(1, epoch + 1):
        record = lifecycle.run(lifecycle.assign(record, "w", "w-1", STAMP), STAMP)
        if turn < epoch:
            record = lifecycle.requeue(record, "worker_lost", "", STAMP, attempt=False)
    return record


def done(name: str, epoch: int = 1, image: str = "") -> JobRecord:
    output = Output(key=f"{name}/{epoch}/0.mp4", media_type="video/mp4", size=1, sha256="")
    folded = lifecycle.fold(running(name, epoch, image), epoch, Succeeded(outputs=(output,)), 1.0, STAMP)
    assert folded is not None
    return folded


class Place:
    """A store, a bus, and a sweep between them."""

    def __init__(self, broker: MemoryBroker, folder: Path) -> None:
        self.folder = folder
        self.artifacts: Artifacts = open_store(str(folder))
        self.bus: MemoryBus = broker.connect("sweep")
        self.leads = True
        self.metrics = Metrics()
        self.sweep = Sweep(self.bus, broker.clock, self.metrics, self.artifacts, lambda: self.leads)

    async def has(self, *keys: str, days: float = 1.5) -> None:
        """These files are there, so old."""
        for key in keys:
            stored = await self.artifacts.put(key, b"x")
            aged = stored.modified - days * DAY_S
            os.utime(self.folder / key, (aged, aged))

    async def knows(self, *records: JobRecord, archived: Iterable[JobRecord] = ()) -> None:
        for record in records:
            await self.bus.bucket(JOBS.name).create(record.id, encode(record))
        for record in archived:
            await self.bus.bucket(ARCHIVE.name).create(archive_key(record.tenant, record.id), encode(record))

    async def files(self) -> set[str]:
        return {stored.key async for stored in self.artifacts.list()}


@pytest.fixture
def place(broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(sweep, "_PAUSE_S", 0.0)
    return Place(broker, tmp_path)


async def test_what_records_refer_to_stays(place: Place) -> None:
    kept = {"a/1/0.mp4", "b/2/0.mp4", "c/3/0.mp4", "c/4/0.mp4", "inputs/default/aa", "inputs/default/bb"}
    await place.has(*kept)
    await place.knows(running("c", 3, image="aa"), done("a"), archived=[done("b", 2, image="bb")])
    assert not await place.sweep.once()
    assert await place.files() == kept


async def test_every_kind_of_input_stays(place: Place) -> None:
    fields = ("image", "last_image", "video", "mask")
    given = {
        name: Input(key=f"inputs/default/{name}", media_type="", size=1, sha256="") for name in (*fields, "a", "b")
    }
    request = replace(REQUEST, references=(given["a"], given["b"]), **{name: given[name] for name in fields})
    assert {each.key for each in request.inputs().values()} == {each.key for each in given.values()}
    await place.has(*(each.key for each in given.values()))
    await place.knows(replace(job("j"), request=request))
    await place.sweep.once()
    assert await place.files() == {each.key for each in given.values()}


async def test_what_nothing_refers_to_goes(place: Place) -> None:
    stale = {"a/1/0.mp4", "b/1/0.mp4", "b/3/0.mp4", "never/1/0.mp4", "inputs/default/aa", "c/1/0.mp4"}
    await place.has("a/2/0.mp4", "b/2/0.mp4", *stale)
    await place.knows(done("a", 2), running("c", 2), archived=[done("b", 2)])
    await place.sweep.once()
    assert await place.files() == {"a/2/0.mp4", "b/2/0.mp4"}
    assert place.metrics.registry.get_sample_value("genfleet_scheduler_swept_total") == len(stale)


async def test_what_is_younger_than_a_day_stays(place: Place) -> None:
    await place.has("never/1/0.mp4", "inputs/default/aa", days=0.9)
    await place.sweep.once()
    assert await place.files() == {"never/1/0.mp4", "inputs/default/aa"}


async def test_what_is_not_ours_stays(place: Place) -> None:
    await place.has("notes.txt", "models/wan/weights.bin", days=400.0)
    await place.sweep.once()
    assert await place.files() == {"notes.txt", "models/wan/weights.bin"}


async def test_the_files_of_a_record_that_cannot_be_read_stay(place: Place) -> None:
    await place.has("a/1/0.mp4", "b/1/0.mp4")
    await place.bus.bucket(JOBS.name).create("a", b"{")
    await place.bus.bucket(ARCHIVE.name).create("default.b", b"{")
    await place.sweep.once()
    assert await place.files() == {"a/1/0.mp4", "b/1/0.mp4"}


async def test_who_does_not_lead_removes_nothing(place: Place) -> None:
    await place.has("never/1/0.mp4")
    place.leads = False
    await place.sweep.once()
    assert await place.files() == {"never/1/0.mp4"}


async def test_more_files_than_one_round_takes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "CANDIDATES", 3)
    kept = {f"kept{number}/1/0.mp4" for number in range(5)}
    await place.has(*kept, *(f"never{number}/1/0.mp4" for number in range(5)))
    await place.knows(archived=[done(key.split("/")[0]) for key in kept])
    for _ in range(12):
        await place.sweep.once()
    assert await place.files() == kept


async def test_a_leader_sweeps_by_itself(place: Place, broker: MemoryBroker) -> None:
    clock = broker.clock
    assert isinstance(clock, FakeClock)
    await place.has("never/1/0.mp4")
    swept = 0

    async def once() -> bool:
        nonlocal swept
        swept += 1
        return swept == 1

    place.sweep.once = once  # type: ignore[method-assign]
    task = asyncio.ensure_future(place.sweep.run())
    await clock.advance(sweep.FIRST_S - 1.0)
    assert swept == 0
    await clock.advance(2.0 + sweep.AGAIN_S)
    assert swept == 2
    await clock.advance(sweep.EVERY_S + 1.0)
    assert swept == 3
    task.cancel()
