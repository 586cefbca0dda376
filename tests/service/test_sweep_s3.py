"""The leader's sweep and retention over a bucket: what nothing refers to goes, small pictures and inputs included."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from scheduler import sweep
from scheduler.deletions import Deletions
from scheduler.metrics import Metrics
from scheduler.sweep import Sweep
from shared.artifacts import Artifacts, open_store
from shared.errors import ArtifactError
from shared.messages import JobRecord, encode
from shared.topology import DELETED, JOBS, archive_key, pending_key
from tests.service.test_sweep import done
from tests.support.memory_bus import MemoryBroker, MemoryBus
from tests.support.s3_server import S3Server

NAMES = ("0.mp4", "0.thumbnail.jpg", "0.spritesheet.jpg")


@pytest.fixture
def store(s3: S3Server) -> Artifacts:
    return open_store(s3.location(), s3.options)


@pytest.fixture
async def bus(broker: MemoryBroker) -> MemoryBus:
    return broker.connect("sweep")


def with_pictures(record: JobRecord) -> JobRecord:
    """The record's one output has small pictures."""
    (output,) = record.outputs
    prefix = output.key.removesuffix(".mp4")
    made = replace(output, thumbnail=f"{prefix}.thumbnail.jpg", spritesheet=f"{prefix}.spritesheet.jpg")
    return replace(record, outputs=(made,))


async def keys(store: Artifacts) -> set[str]:
    return {stored.key async for stored in store.list()}


async def test_a_round_leaves_what_jobs_refer_to_and_nothing_else(
    bus: MemoryBus, broker: MemoryBroker, store: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = with_pictures(done("kept", epoch=2, image="used"))
    await bus.bucket(JOBS.name).create("kept", encode(kept))
    refers = {*(f"kept/2/{name}" for name in NAMES), "inputs/default/used"}
    orphans = {*(f"gone/1/{name}" for name in NAMES), *(f"kept/1/{name}" for name in NAMES), "inputs/default/unused"}
    for key in refers | orphans:
        await store.put(key, b"x")
    sweeping = Sweep(bus, broker.clock, Metrics(), store, lambda: True)
    assert await sweeping.once() is False
    assert await keys(store) == refers | orphans  # they are young
    monkeypatch.setattr(sweep, "OLD_S", -10.0)
    assert await sweeping.once() is False
    assert await keys(store) == refers


async def test_a_deletion_that_the_store_did_not_take_is_finished_later(
    bus: MemoryBus, broker: MemoryBroker, s3: S3Server
) -> None:
    location = s3.location()
    store = open_store(location, replace(s3.options, timeout_s=0.1))
    for name in NAMES:
        await store.put(f"job1/1/{name}", b"x")
    record = with_pictures(done("job1"))
    await bus.bucket(JOBS.name).create("job1", encode(record))
    deleted = bus.bucket(DELETED.name)
    await deleted.put(pending_key("default", "job1"), b"user")
    await deleted.put(archive_key("default", "job1"), b"user")
    deletions = Deletions(bus, broker.clock, store)
    s3.broken = True
    assert await deletions.remove("default", "job1") is False
    with pytest.raises(ArtifactError):
        await keys(store)
    s3.broken = False
    assert len(await keys(store)) == len(NAMES)
    await deletions.finish(pending_key("default", "job1"))
    assert await keys(store) == set()
    pending = await deleted.get(pending_key("default", "job1"))
    assert pending is None or pending.value is None
