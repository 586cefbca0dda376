"""From a record's bytes to what the core keeps of it, and a bounded memory of the bytes.

Of each queued job the core keeps a ``Summary``, never the request: a prompt may be long, and a hundred thousand jobs
wait. The bytes of the latest revisions stay in a cache of fixed size, so that a job that is assigned soon after it was
submitted needs no second read; for others the shell reads the bucket again, and the revision says whether it is still
the one that was decided on.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

import msgspec
from msgspec import Struct

from scheduler.events import Summary, Wish
from shared.bus import Entry
from shared.messages import DEFAULT_TENANT, JobRecord, JobRequest, Parallel, State, decode


class _RequestHead(Struct):
    model: str
    parallel: Parallel = Parallel()
    width: int = 0
    height: int = 0
    num_frames: int = 0
    steps: int = 1
    n: int = 1


class _Used(Struct, frozen=True):
    load_s: float = 0.0


class _Head(Struct, kw_only=True):
    id: str
    request: _RequestHead
    state: State = State.QUEUED
    epoch: int = 0
    tenant: str = DEFAULT_TENANT
    priority: int = 5
    age_s: float = 0.0
    start_deadline_s: float | None = None
    run_timeout_s: float = 3600.0
    waited_s: float | None = None
    ran_s: float | None = None
    attempts: int = 0
    worker: str | None = None
    incarnation: str | None = None
    used: _Used = _Used()


T = TypeVar("T")
_heads = msgspec.json.Decoder(_Head)


class Summaries:
    """Makes summaries. Words that many jobs share (wishes, tenants, workers) are kept once."""

    def __init__(self) -> None:
        self._wishes: dict[Wish, Wish] = {}
        self._words: dict[str, str] = {}

    def of_entry(self, entry: Entry, since_s: float) -> Summary:
        """The summary of an entry that has a value.

        Raises:
            msgspec.ValidationError, msgspec.DecodeError: it is not a job record.
        """
        head = _heads.decode(entry.value or b"")
        return self._make(head, head.request, head.used.load_s, entry.revision, entry.timestamp, since_s)

    def of_record(self, record: JobRecord, revision: int, timestamp: float) -> Summary:
        """The summary of a record that was just written, at about that time by the broker's clock."""
        load_s = record.used.get("load_s", 0.0)
        load_s = load_s if isinstance(load_s, (int, float)) else 0.0
        return self._make(record, record.request, load_s, revision, timestamp, 0.0)

    def _make(
        self,
        head: _Head | JobRecord,
        request: _RequestHead | JobRequest,
        load_s: float,
        revision: int,
        timestamp: float,
        since_s: float,
    ) -> Summary:
        wish = Wish(model=request.model, parallel=request.parallel)
        return Summary(
            id=head.id,
            revision=revision,
            state=head.state,
            epoch=head.epoch,
            wish=self._once(self._wishes, wish),
            tenant=self._once(self._words, head.tenant),
            priority=head.priority,
            birth=timestamp - head.age_s,
            age_s=head.age_s,
            since_s=since_s,
            start_deadline_s=head.start_deadline_s,
            run_timeout_s=head.run_timeout_s,
            started=head.waited_s is not None,
            worker=None if head.worker is None else self._once(self._words, head.worker),
            incarnation=None if head.incarnation is None else self._once(self._words, head.incarnation),
            attempts=head.attempts,
            ran_s=head.ran_s,
            load_s=load_s,
            volume=request.width * request.height * request.num_frames,
            steps=request.steps * request.n,
        )

    @staticmethod
    def _once(table: dict[T, T], value: T) -> T:
        found = table.get(value)
        if found is None:
            if len(table) > 10_000:
                table.clear()
            table[value] = found = value
        return found


class Revision:
    """A job's entry, and the record in it once somebody has asked for it.

    Attributes:
        number: the entry's revision.
        timestamp: the broker's clock at the write.
        size: bytes of the entry.
    """

    __slots__ = ("_record", "_value", "number", "size", "timestamp")

    def __init__(self, entry: Entry, record: JobRecord | None = None) -> None:
        self.number = entry.revision
        self.timestamp = entry.timestamp
        self._value = entry.value or b""
        self.size = len(self._value)
        self._record = record

    def record(self) -> JobRecord:
        """The record.

        Raises:
            msgspec.ValidationError, msgspec.DecodeError: it is none.
        """
        if self._record is None:
            self._record = decode(self._value, JobRecord)
        return self._record


class RecordCache:
    """The latest revisions of open jobs, up to a number of bytes; the longest unused go first."""

    def __init__(self, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._max = max_bytes
        self._size = 0
        self._kept: OrderedDict[str, Revision] = OrderedDict()

    def put(self, key: str, revision: Revision) -> None:
        """Keep it, unless a later one of its key is kept."""
        known = self._kept.get(key)
        if known is not None and known.number >= revision.number:
            return
        self.drop(key)
        self._kept[key] = revision
        self._size += revision.size
        while self._size > self._max:
            self.drop(next(iter(self._kept)))

    def get(self, key: str, number: int) -> Revision | None:
        """That revision, if it is kept."""
        found = self._kept.get(key)
        if found is None or found.number != number:
            return None
        self._kept.move_to_end(key)
        return found

    def drop(self, key: str) -> None:
        """Forget the key."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._size -= found.size
