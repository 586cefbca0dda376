"""The shell's hand that writes: each move of a record is one compare-and-set, and its outcome is always found out.

A write that was not answered may have happened. It is settled by reading: a record whose log holds the entry that was
to be written says that it was won; the same revision as before says try again; anything else, lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import msgspec

from scheduler.commands import DropResult, FoldIn, ToAssigned, ToFailed, ToQueued, ToRunning, WriteRecord
from scheduler.entities import ACTIVE
from scheduler.events import Event, ResultSeen, WriteLost, WriteRefused, WriteWon
from scheduler.leftovers import Leftovers, is_over
from scheduler.metrics import Metrics
from scheduler.records import Revision
from scheduler.watch import Watch
from shared.bus import Bus, Entry
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable, InvalidKey, ValueTooLarge, WrongRevision
from shared.lifecycle import IllegalTransition, Stamp, assign, fail, fold, is_own_write, requeue, run
from shared.messages import TERMINAL, Failed, JobRecord, Reason, decode, encode
from shared.telemetry import about, log
from shared.topology import JOBS, RESULTS, result_key

_LOG = log(__name__)


class Writes:
    """Carries out ``WriteRecord`` and ``DropResult``.

    Args:
        name: of this start of the scheduler; it marks the records that it writes.
        leftovers: removes the files of attempts that came too late.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        name: str,
        watch: Watch,
        leftovers: Leftovers,
        metrics: Metrics,
        feed: Callable[[Event], None],
    ) -> None:
        self._jobs = bus.bucket(JOBS.name)
        self._results = bus.bucket(RESULTS.name)
        self._clock = clock
        self._name = name
        self._watch = watch
        self._leftovers = leftovers
        self._metrics = metrics
        self._feed = feed

    def _now(self) -> float:
        return self._clock.monotonic()

    async def write(self, command: WriteRecord) -> None:
        """Make the move, and tell the core what came of it."""
        base = self._watch.cache.get(command.job, command.revision)
        if base is None:
            found = await self._watch.read(command.job)
            if found is None or found.value is None or found.revision != command.revision:
                self._lose(command, found)
                return
            base = Revision(found)
        try:
            record = base.record()
        except msgspec.MsgspecError as error:
            self._refuse(command, error)
            return
        with about(record.id, record.epoch):
            if isinstance(command.move, (ToQueued, ToFailed)) and await self._has_ended(record):
                self._feed(WriteLost(now=self._now(), job=command.job))
                return
            stamp = Stamp(by=self._name, at=self._clock.wall(), since_s=command.since_s)
            try:
                wanted = _moved(record, command, stamp)
            except IllegalTransition as error:
                self._refuse(command, error)
                return
            written_at = base.timestamp + wanted.age_s - record.age_s
            await self._compare_and_set(command, wanted, written_at)

    async def _has_ended(self, record: JobRecord) -> bool:
        """Whether the worker that is given up has left its result after all; then the core is told."""
        if record.worker is None or record.epoch == 0:
            return False
        key = result_key(record.worker, record.id, record.epoch)
        found = await self._watch.answered(lambda: self._results.get(key))
        if found is None or found.value is None:
            return False
        return self._watch.see_result(found, live=True)

    async def _compare_and_set(self, command: WriteRecord, wanted: JobRecord, written_at: float) -> None:
        value = encode(wanted)
        unsure = False
        tries = 0
        while True:
            try:
                revision = await self._jobs.update(command.job, value, command.revision)
            except (BucketFull, ValueTooLarge, InvalidKey) as error:
                self._refuse(command, error)
                return
            except BusUnavailable:
                unsure = True
                await self._watch.pause(tries)
                tries += 1
            except WrongRevision:
                if not unsure:
                    self._lose(command, await self._watch.read(command.job))
                    return
            else:
                self._win(command, wanted, Entry(command.job, value, revision, written_at), wanted)
                return
            found = await self._watch.read(command.job)
            if found is not None and (now := _after(wanted, found)) is not None:
                _LOG.info("write_was_won", revision=found.revision)
                self._win(command, wanted, found, now)
                return
            if found is None or found.revision != command.revision:
                self._lose(command, found)
                return

    def _win(self, command: WriteRecord, wanted: JobRecord, entry: Entry, now: JobRecord) -> None:
        """``now``: the record in that entry, which may have gone on since the write."""
        self._metrics.moves.labels(type(command.move).__name__).inc()
        last = wanted.transitions[-1]
        age_s = round(wanted.age_s, 3)
        _LOG.info("moved", to=wanted.state, epoch=wanted.epoch, worker=wanted.worker, reason=last.reason, age_s=age_s)
        self._feed(WriteWon(now=self._now(), job=self._watch.wrote(entry, now)))

    def _lose(self, command: WriteRecord, found: Entry | None) -> None:
        self._metrics.lost.inc()
        if self._watch.tell(command.job, found, command.revision):
            self._feed(WriteLost(now=self._now(), job=command.job))
        else:
            self._feed(WriteRefused(now=self._now(), job=command.job))

    def _refuse(self, command: WriteRecord, error: Exception) -> None:
        _LOG.error("not_written", job=command.job, move=type(command.move).__name__, error=repr(error))
        self._feed(WriteRefused(now=self._now(), job=command.job))

    async def drop(self, command: DropResult) -> None:
        """Remove the result, if it is certain that it counts no more, and before it the files of an attempt that came
        too late."""
        result, superseded = command.result, command.superseded
        if not command.certain:
            try:
                seen = await self._watch.look(result.job)
            except msgspec.MsgspecError:
                return
            if seen is not None:
                counts = seen.epoch == result.epoch and seen.state in ACTIVE
                if counts or (seen.epoch < result.epoch and seen.state not in TERMINAL):
                    self._feed(ResultSeen(now=self._now(), result=result))
                    return
                superseded = is_over(result.epoch, seen)
            else:
                superseded = await self._watch.answered(lambda: self._leftovers.of_departed(result))
        if superseded:
            await self._leftovers.remove(result)
        key = result_key(result.worker, result.job, result.epoch)
        revision = self._watch.result_dropped(key)
        await self._watch.answered(lambda: self._results.purge(key, revision))


def _after(wanted: JobRecord, found: Entry) -> JobRecord | None:
    """The record that was found, if it is, or came after, the write of ``wanted``."""
    try:
        record = decode(found.value or b"", JobRecord)
    except msgspec.MsgspecError:
        return None
    return record if is_own_write(wanted, record) else None


def _moved(record: JobRecord, command: WriteRecord, stamp: Stamp) -> JobRecord:
    match command.move:
        case ToAssigned(worker=worker, incarnation=incarnation, reason=reason):
            return assign(record, worker, incarnation, stamp, reason)
        case ToRunning():
            return run(record, stamp)
        case ToQueued(reason=reason, message=message):
            return requeue(record, reason, message, stamp, attempt=False)
        case ToFailed(reason=reason, message=message):
            return fail(record, reason, message, stamp)
        case FoldIn(result=result):
            folded = fold(record, result.epoch, result.outcome, result.ran_s, stamp)
            if folded is not None and len(encode(folded)) > JOBS.max_value:
                # It would never fit, and the job never end.
                failed = Failed(reason=Reason.ENGINE_ERROR, message="the worker's result is too large", final=True)
                folded = fold(record, result.epoch, failed, result.ran_s, stamp)
            if folded is None:
                raise IllegalTransition("the result no longer counts")
            return folded
        case _:
            assert_never(command.move)
