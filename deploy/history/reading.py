"""Taking a ``Snapshot`` through the ports.

A snapshot of a fleet at work is not one instant: submits are to be read before records; records are read before the
archive, that before tombstones, results and files, so that a job that moves on is met again where it went, and what a
record speaks of was there when the later things were read.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import aclosing
from pathlib import Path

import msgspec
from msgspec.structs import replace

from deploy.history.check import Snapshot, Submit, job_and_epoch
from shared import topology
from shared.artifacts import Artifacts, Stored
from shared.bus import Bus, Entry
from shared.errors import ArtifactNotFound
from shared.messages import JobRecord, decode


async def read(bus: Bus, artifacts: Artifacts, *, contents: bool = False) -> Snapshot:
    """A snapshot of the fleet on that bus.

    Args:
        contents: read every output that a record refers to and compute its SHA-256.

    Raises:
        BusError, ArtifactError: it cannot be read.
    """
    jobs = await last_values(bus, topology.JOBS.name)
    archive = await last_values(bus, topology.ARCHIVE.name)
    tombstones = await last_values(bus, topology.DELETED.name)
    results = await last_values(bus, topology.RESULTS.name)
    leases = await last_values(bus, topology.WORKERS.name)
    # The newest write anywhere is the nearest to "now" that the broker's clock can be had.
    newest = max((entry.timestamp for entry in (*jobs, *results, *leases)), default=0.0)
    written = {entry.key: entry.timestamp for entry in jobs}
    unreadable: dict[str, str] = {}
    records, archived = _records(jobs, unreadable), _records(archive, unreadable)
    files = [stored async for stored in artifacts.list()]
    if contents:
        referred = {output.key for record in (*records, *archived) for output in record.outputs}
        files = [await _with_digest(artifacts, stored) if stored.key in referred else stored for stored in files]
    return Snapshot(
        records=records,
        archived=archived,
        deleted=frozenset(_job_of(entry.key) for entry in tombstones if entry.value is not None),
        unreadable=unreadable,
        results={
            entry.key: newest - max(entry.timestamp, written.get(job_and_epoch(entry.key.split(".")[1:])[0], 0.0))
            for entry in results
            if entry.value is not None
        },
        files=tuple(files),
        # Two machines' clocks, but what is decided by it is counted in days.
        now=time.time(),
    )


def _records(entries: list[Entry], unreadable: dict[str, str]) -> tuple[JobRecord, ...]:
    records = []
    for entry in entries:
        if entry.value is None:
            continue
        try:
            records.append(decode(entry.value, JobRecord))
        except msgspec.MsgspecError as error:
            unreadable[_job_of(entry.key)] = str(error)
    return tuple(records)


def _job_of(key: str) -> str:
    return key.rpartition(".")[2]


async def last_values(bus: Bus, bucket: str) -> list[Entry]:
    """The last entry of every key of that bucket, markers included. Raises BusError."""
    last: dict[str, Entry] = {}
    async with aclosing(bus.bucket(bucket).follow()) as batches:  # type: ignore[type-var]
        async for batch in batches:
            last.update({entry.key: entry for entry in batch.entries})
            if batch.caught_up:
                break
    return list(last.values())


async def _with_digest(artifacts: Artifacts, stored: Stored) -> Stored:
    digest = hashlib.sha256()
    try:
        async for chunk in artifacts.read(stored.key):
            digest.update(chunk)
    except ArtifactNotFound:
        return stored
    return replace(stored, sha256=digest.hexdigest())


def read_submits(path: Path) -> list[Submit]:
    """What a client wrote at each 2xx; a last line that a crash cut short is left out.

    Raises:
        OSError: the file cannot be read.
        msgspec.MsgspecError: a line is not a ``Submit``.
    """
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return msgspec.json.decode(b"[" + b",".join(whole.split(b"\n")) + b"]", type=list[Submit]) if whole else []
