"""A snapshot read through the ports says what is there, and the checker finds what was broken in it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from deploy.history.check import Kind, Submit, check
from deploy.history.command import main
from deploy.history.reading import read, read_submits
from shared import lifecycle, topology
from shared.artifacts import Artifacts, open_store
from shared.messages import JobRecord, Output, Result, State, Succeeded, encode
from tests.core.histories import REQUEST, STAMP
from tests.support.clock import FakeClock
from tests.support.memory_bus import MemoryBroker, MemoryBus

DIGEST = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # of b"hello"


def job(name: str) -> JobRecord:
    return lifecycle.born(JobRecord(id=name, request=REQUEST, payload_hash="", created_at=0.0), STAMP)


def done(name: str) -> JobRecord:
    record = lifecycle.run(lifecycle.assign(job(name), "w", "w-1", STAMP), STAMP)
    output = Output(key=f"{name}/1/0.mp4", media_type="video/mp4", size=5, sha256=DIGEST)
    folded = lifecycle.fold(record, 1, Succeeded(outputs=(output,)), 1.0, STAMP)
    assert folded is not None
    return folded


class Fleet:
    """What a fleet leaves behind, written by hand."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.bus: MemoryBus = MemoryBroker(self.clock).connect("fleet")
        self.artifacts: Artifacts = open_store(str(folder))
        self.jobs = self.bus.bucket(topology.JOBS.name)

    async def leaves(self, record: JobRecord) -> None:
        await self.jobs.create(record.id, encode(record))
        for output in record.outputs:
            await self.artifacts.put(output.key, b"hello")

    async def result_of(self, record: JobRecord) -> None:
        result = Result(job=record.id, epoch=1, worker="w", incarnation="w-1", outcome=Succeeded(outputs=()))
        await self.bus.bucket(topology.RESULTS.name).put(topology.result_key("w", record.id, 1), encode(result))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "artifacts")


async def test_a_sound_fleet(fleet: Fleet) -> None:
    await fleet.leaves(done("a"))
    await fleet.leaves(job("b"))
    await fleet.leaves(job("c"))
    await fleet.jobs.delete("c")
    await fleet.bus.bucket(topology.DELETED.name).put(topology.archive_key("default", "c"), b"")
    await fleet.artifacts.put("inputs/default/aa", b"photo")
    snapshot = await read(fleet.bus, fleet.artifacts, contents=True)
    assert {record.id: record.state for record in snapshot.records} == {"a": State.SUCCEEDED, "b": State.QUEUED}
    assert snapshot.deleted == {"c"}
    assert {stored.key: stored.sha256 for stored in snapshot.files} == {"a/1/0.mp4": DIGEST, "inputs/default/aa": ""}
    assert check(snapshot, [Submit(id=name) for name in "abc"]) == []


async def test_an_ended_job_is_in_the_archive_when_jobs_has_only_a_marker(fleet: Fleet) -> None:
    await fleet.leaves(done("a"))
    await fleet.bus.bucket(topology.ARCHIVE.name).create(topology.archive_key("default", "a"), encode(done("a")))
    assert check(await read(fleet.bus, fleet.artifacts, contents=True), [Submit(id="a")], at_rest=True) == []
    await fleet.jobs.delete("a")
    snapshot = await read(fleet.bus, fleet.artifacts, contents=True)
    assert (snapshot.records, snapshot.archived) == ((), (done("a"),))
    assert check(snapshot, [Submit(id="a")], at_rest=True) == []


async def test_a_marker_alone_is_a_lost_job(fleet: Fleet) -> None:
    await fleet.jobs.create("a", encode(job("a")))
    await fleet.jobs.delete("a")
    found = check(await read(fleet.bus, fleet.artifacts), [Submit(id="a")])
    assert [finding.kind for finding in found] == [Kind.LOST]


async def test_an_empty_fleet(fleet: Fleet) -> None:
    snapshot = await read(fleet.bus, fleet.artifacts)
    assert (snapshot.records, snapshot.results, snapshot.files) == ((), {}, ())


async def test_a_value_that_is_no_record(fleet: Fleet) -> None:
    await fleet.jobs.create("a", b'{"kind":"job"')
    snapshot = await read(fleet.bus, fleet.artifacts)
    assert [finding.kind for finding in check(snapshot, [Submit(id="a")])] == [Kind.UNREADABLE]


async def test_contents_are_compared_when_asked(fleet: Fleet) -> None:
    await fleet.leaves(done("a"))
    await fleet.artifacts.put("a/1/0.mp4", b"HELLO")
    assert check(await read(fleet.bus, fleet.artifacts)) == []
    found = check(await read(fleet.bus, fleet.artifacts, contents=True))
    assert [finding.kind for finding in found] == [Kind.FILE_DIFFERS]


async def test_ages_are_the_brokers(fleet: Fleet) -> None:
    """A result counts as left from the last write of it and of its job's record, by the newest write anywhere."""
    await fleet.leaves(job("a"))
    await fleet.result_of(job("a"))
    await fleet.clock.advance(100)
    await fleet.jobs.put("a", encode(done("a")))
    await fleet.artifacts.put("a/1/0.mp4", b"hello")
    assert (await read(fleet.bus, fleet.artifacts)).results == {"w.a.1": 0.0}
    await fleet.clock.advance(100)
    await fleet.leaves(job("b"))
    snapshot = await read(fleet.bus, fleet.artifacts)
    assert snapshot.results == {"w.a.1": 100.0}
    assert [finding.kind for finding in check(snapshot)] == [Kind.RESULT_LEFT]
    await fleet.bus.bucket(topology.RESULTS.name).purge("w.a.1")
    assert check(await read(fleet.bus, fleet.artifacts)) == []


def test_a_file_of_submits(tmp_path: Path) -> None:
    submits = [Submit(id="a", key="k", time=1.5), Submit(id="b")]
    file = tmp_path / "submits"
    file.write_bytes(b"".join(msgspec.json.encode(submit) + b"\n" for submit in submits))
    assert read_submits(file) == submits
    with file.open("ab") as more:
        more.write(b'{"id": "c", "ke')
    assert read_submits(file) == submits, "its writer was killed in the middle of a line"
    file.write_bytes(b"")
    assert read_submits(file) == []


@pytest.mark.parametrize("content", [None, b'{"id": 5}\n', b"\xff\n"])
def test_what_cannot_be_found_out_is_neither_sound_nor_broken(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "submits"
    if content is not None:
        file.write_bytes(content)
    assert main(artifacts=str(tmp_path), submits=file) == 2
    assert "could not find out" in capsys.readouterr().err


async def test_revisions_may_be_replaced_by_hand(fleet: Fleet) -> None:
    """What an operator might do to a record with the broker's own tools is found."""
    await fleet.leaves(done("a"))
    await fleet.jobs.put("a", encode(replace(done("a"), state=State.RUNNING, outputs=())))
    found = check(await read(fleet.bus, fleet.artifacts))
    assert {finding.kind for finding in found} == {Kind.UNLIKE_ITS_LOG}
