"""The scheduler's shell: tells the core what happens, and does what the core commands.

Three followers (jobs, workers, results) and a ticker feed ``decide``; each command becomes work on a lane with bounded
concurrency, whose outcome is fed back. Any number of these may run at once on one broker: every write is a
compare-and-set.

A write that was not answered may have happened. It is settled by reading: a record whose log holds the entry that was
to be written says that it was won; the same revision as before says try again; anything else, lost.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, assert_never, cast

import msgspec

from scheduler.commands import (
    Command,
    DropResult,
    FoldIn,
    SendAssign,
    SendCancel,
    ToAssigned,
    ToFailed,
    ToQueued,
    ToRunning,
    WriteRecord,
)
from scheduler.decide import decide
from scheduler.events import (
    Answer,
    AssignAnswered,
    CaughtUp,
    Event,
    JobGone,
    JobSeen,
    LeaseGone,
    LeaseSeen,
    NoAnswer,
    NoListener,
    Reset,
    ResultSeen,
    Stream,
    Tick,
    WriteLost,
    WriteRefused,
    WriteWon,
)
from scheduler.metrics import Metrics
from scheduler.policy import Times
from scheduler.records import RecordCache, Summaries
from scheduler.state import ACTIVE, CoreState
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable, InvalidKey, NoResponders, ValueTooLarge, WrongRevision
from shared.lifecycle import IllegalTransition, Stamp, assign, fail, fold, is_own_write, requeue, run
from shared.messages import (
    TERMINAL,
    Accepted,
    Assign,
    AssignReply,
    CancelOrder,
    Failed,
    JobRecord,
    Reason,
    Result,
    State,
    WorkerLease,
    decode,
    encode,
)
from shared.settings import Settings
from shared.telemetry import about, log
from shared.topology import JOBS, ORDERS, RESULTS, WORKERS, assign_subject, cancel_key, nudge_subject, result_key

TICK_S = 0.1
WRITES_AT_ONCE = 64
REQUESTS_AT_ONCE = 512
#: Contact that is younger than this may still be delivering what was missed.
_SETTLED_S = 5.0
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)

_LOG = log(__name__)
_replies: msgspec.json.Decoder[AssignReply] = msgspec.json.Decoder(AssignReply)
T = TypeVar("T")


class _Lane:
    """Runs what is put on it, so many at a time, the first first."""

    def __init__(self, group: asyncio.TaskGroup, limit: int) -> None:
        self._group = group
        self._limit = limit
        self._at_work = 0
        self._waiting: deque[Callable[[], Awaitable[None]]] = deque()

    def put(self, work: Callable[[], Awaitable[None]]) -> None:
        self._waiting.append(work)
        if self._at_work < self._limit:
            self._at_work += 1
            self._group.create_task(self._go())

    async def _go(self) -> None:
        while self._waiting:
            await self._waiting.popleft()()
        self._at_work -= 1


class Scheduler:
    """One scheduler process.

    Args:
        name: of this start; it marks the records that this process writes, so no two starts may share one.
        times: the durations that the core goes by.

    Attributes:
        ready: set when the buckets have been read and decisions are made.
        state: the core's; read only.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        clock: Clock,
        name: str | None = None,
        times: Times | None = None,
    ) -> None:
        self.name = name or f"scheduler-{secrets.token_hex(4)}"
        self.ready = asyncio.Event()
        self.state = CoreState(times or Times(lease_s=settings.lease_s))
        self.metrics = Metrics()
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._jobs = bus.bucket(JOBS.name)
        self._results = bus.bucket(RESULTS.name)
        self._orders = bus.bucket(ORDERS.name)
        self._leases = bus.bucket(WORKERS.name)
        self._summaries = Summaries()
        self._cache = RecordCache()
        self._deciding: dict[tuple[str, int], float] = {}
        #: The broker's clock minus ours; None until it was read.
        self._broker_ahead: float | None = None
        self._contact_broke: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Schedule until cancelled or ``stop``."""
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            await self._read_broker_clock()
            async with asyncio.TaskGroup() as group:
                self._writes = _Lane(group, WRITES_AT_ONCE)
                self._requests = _Lane(group, REQUESTS_AT_ONCE)
                group.create_task(self._follow(self._jobs.follow(), Stream.JOBS, self._see_job))
                group.create_task(self._follow(self._leases.follow(), Stream.WORKERS, self._see_lease))
                group.create_task(self._follow(self._results.follow(), Stream.RESULTS, self._see_result))
                group.create_task(self._tick())
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """End ``run``; what it had begun is found again by whoever starts next."""
        if self._task is not None:
            self._task.cancel()
            await self._ended.wait()

    # --- in: what happens --------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        for command in decide(self.state, event):
            self._do(command)
        if self.state.ready and not self.ready.is_set():
            self.ready.set()
            _LOG.info("scheduling", scheduler=self.name, open_jobs=len(self.state.jobs))

    def _now(self) -> float:
        return self._clock.monotonic()

    async def _follow(self, batches: AsyncIterator[Batch], stream: Stream, see: Callable[[Entry, bool], None]) -> None:
        live = False
        async with aclosing(cast("AsyncGenerator[Batch, None]", batches)) as following:
            async for batch in following:
                if batch.reset:
                    _LOG.warning("bucket_made_anew", bucket=stream)
                    self._feed(Reset(now=self._now(), stream=stream))
                for entry in batch.entries:
                    see(entry, live)
                if batch.caught_up and not live:
                    live = True
                    self._feed(CaughtUp(now=self._now(), stream=stream))

    def _see_job(self, entry: Entry, live: bool) -> None:
        if entry.value is None:
            self._cache.drop(entry.key)
            self._feed(JobGone(now=self._now(), job=entry.key, revision=entry.revision))
            return
        try:
            seen = self._summaries.of_entry(entry, self._since(entry.timestamp, live))
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_record", key=entry.key, revision=entry.revision, error=str(error))
            return
        if seen.id != entry.key:
            _LOG.error("record_under_wrong_key", key=entry.key, revision=entry.revision)
            return
        if seen.state in TERMINAL:
            self._cache.drop(entry.key)
        else:
            self._cache.put(entry)
        self._feed(JobSeen(now=self._now(), job=seen))

    def _see_lease(self, entry: Entry, live: bool) -> None:
        if entry.value is None:
            self._feed(LeaseGone(now=self._now(), worker=entry.key))
            return
        try:
            lease = decode(entry.value, WorkerLease)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_lease", key=entry.key, error=str(error))
            return
        if lease.worker != entry.key:
            _LOG.error("lease_under_wrong_key", key=entry.key)
            return
        self._feed(LeaseSeen(now=self._now(), lease=lease))

    def _see_result(self, entry: Entry, live: bool) -> None:
        if entry.value is None:
            return
        try:
            result = decode(entry.value, Result)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_result", key=entry.key, error=str(error))
            return
        if result_key(result.worker, result.job, result.epoch) != entry.key:
            # The bus lets a worker write under its own name only: what stands in the value proves nothing.
            _LOG.error("result_under_wrong_key", key=entry.key)
            return
        self._feed(ResultSeen(now=self._now(), result=result))

    async def _tick(self) -> None:
        shown = 0.0
        while True:
            await self._clock.sleep(TICK_S)
            now, contact_s = self._now(), self._bus.contact_s()
            if contact_s <= 0.0:
                self._contact_broke = now if self._contact_broke is None else self._contact_broke
            elif contact_s >= _SETTLED_S:
                self._contact_broke = None
            self._feed(Tick(now=now, contact_s=contact_s))
            if now - shown >= 1.0:
                shown = now
                self.metrics.show(self.state)

    def _since(self, timestamp: float, live: bool) -> float:
        """Seconds since a revision with that timestamp was written. The broker's clock is asked only for what was
        written while nobody listened: a jump of it must not age a job that was seen to come."""
        longest = float("inf")
        if live:
            if self._contact_broke is None:
                return 0.0
            longest = self._now() - self._contact_broke
        if self._broker_ahead is None:
            return 0.0
        return min(max(0.0, self._now() + self._broker_ahead - timestamp), longest)

    async def _read_broker_clock(self) -> None:
        """Only a message that the broker stores tells its clock."""
        key = f"_clock.{self.name}"

        async def ask() -> Entry | None:
            await self._orders.put(key, b"")
            return await self._orders.get(key)

        entry = await self._answered(ask)
        if entry is not None:
            self._broker_ahead = entry.timestamp - self._now()
        await self._answered(lambda: self._orders.purge(key))

    # --- out: what is commanded --------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        match command:
            case WriteRecord():
                if isinstance(command.move, ToAssigned):
                    self._deciding[command.job, command.revision] = self._now()
                self._writes.put(lambda: self._write(command))
            case SendAssign():
                self._requests.put(lambda: self._send(command))
            case SendCancel():
                self._requests.put(lambda: self._order(command))
            case DropResult():
                self._writes.put(lambda: self._drop(command))
            case _:
                assert_never(command)

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, asked again until the bus answers; so the call must be one that may be repeated."""
        tries = 0
        while True:
            try:
                return await call()
            except BusUnavailable:
                await self._clock.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
                tries += 1

    async def _read(self, job: str) -> Entry | None:
        return await self._answered(lambda: self._jobs.get(job))

    def _tell(self, job: str, found: Entry | None, revision: int) -> None:
        """Let the core know what the bucket holds, after it decided on another revision."""
        if found is None:
            self._feed(JobGone(now=self._now(), job=job, revision=revision + 1))
        else:
            self._see_job(found, live=True)

    async def _at(self, job: str, revision: int) -> Entry | None:
        """The job's entry if it is at that revision; else None, and the core has been told."""
        entry = self._cache.get(job, revision)
        if entry is None:
            entry = await self._read(job)
            if entry is None or entry.revision != revision:
                self._tell(job, entry, revision)
                return None
        return entry

    async def _write(self, command: WriteRecord) -> None:
        base = await self._at(command.job, command.revision)
        if base is None or base.value is None:
            self._lose(command)
            return
        try:
            record = decode(base.value, JobRecord)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_record", key=base.key, revision=base.revision, error=str(error))
            self._feed(WriteRefused(now=self._now(), job=command.job))
            return
        with about(record.id, record.epoch):
            if isinstance(command.move, (ToQueued, ToFailed)) and await self._has_ended(record):
                self._lose(command)
                return
            stamp = Stamp(by=self.name, at=self._clock.wall(), since_s=command.since_s)
            try:
                wanted = _moved(record, command, stamp)
            except IllegalTransition as error:
                _LOG.error("impossible_move", move=type(command.move).__name__, error=str(error))
                self._feed(WriteRefused(now=self._now(), job=command.job))
                return
            await self._compare_and_set(command, base, wanted)

    async def _has_ended(self, record: JobRecord) -> bool:
        """Whether the worker that is given up has left its result after all; then the core is told."""
        if record.worker is None or record.epoch == 0:
            return False
        key = result_key(record.worker, record.id, record.epoch)
        found = await self._answered(lambda: self._results.get(key))
        if found is None or found.value is None:
            return False
        self._see_result(found, live=True)
        return any(result.epoch == record.epoch for result in self.state.results.get(record.id, ()))

    async def _compare_and_set(self, command: WriteRecord, base: Entry, wanted: JobRecord) -> None:
        value = encode(wanted)
        unsure = False
        tries = 0
        while True:
            try:
                revision = await self._jobs.update(command.job, value, base.revision)
            except (BucketFull, ValueTooLarge, InvalidKey) as error:
                _LOG.error("write_refused", bytes=len(value), error=type(error).__name__)
                self._feed(WriteRefused(now=self._now(), job=command.job))
                return
            except BusUnavailable:
                unsure = True
                await self._clock.sleep(_RETRY_S[min(tries, len(_RETRY_S) - 1)])
                tries += 1
            except WrongRevision:
                if not unsure:
                    self._tell(command.job, await self._read(command.job), base.revision)
                    self._lose(command)
                    return
            else:
                self._win(command, wanted, Entry(command.job, value, revision, _written_at(base, wanted)))
                return
            found = await self._read(command.job)
            if found is not None and found.value is not None:
                if is_own_write(wanted, decode(found.value, JobRecord)):
                    _LOG.info("write_was_won", revision=found.revision)
                    self._win(command, wanted, found)
                    return
                if found.revision == base.revision:
                    continue
            self._tell(command.job, found, base.revision)
            self._lose(command)
            return

    def _win(self, command: WriteRecord, wanted: JobRecord, entry: Entry) -> None:
        assert entry.value is not None
        self.metrics.moves.labels(type(command.move).__name__).inc()
        last = wanted.transitions[-1]
        _LOG.info("moved", to=wanted.state, epoch=wanted.epoch, worker=wanted.worker, reason=last.reason)
        if wanted.state in TERMINAL:
            self._cache.drop(command.job)
        else:
            self._cache.put(entry)
        started = self._deciding.pop((command.job, command.revision), None)
        if started is not None:
            self._deciding[command.job, entry.revision] = started
        self._feed(WriteWon(now=self._now(), job=self._summaries.of_entry(entry, 0.0)))

    def _lose(self, command: WriteRecord) -> None:
        self.metrics.lost.inc()
        self._deciding.pop((command.job, command.revision), None)
        self._feed(WriteLost(now=self._now(), job=command.job))

    async def _send(self, command: SendAssign) -> None:
        started = self._deciding.pop((command.job, command.revision), None)
        entry = await self._at(command.job, command.revision)
        answer: Answer = NoAnswer()
        if entry is not None and entry.value is not None:
            record = decode(entry.value, JobRecord)
            with about(command.job, command.epoch):
                answer = await self._ask(command, record)
                if not isinstance(answer, Accepted):
                    _LOG.info("not_accepted", worker=command.worker, answer=type(answer).__name__)
        if started is not None and isinstance(answer, Accepted):
            self.metrics.assign.observe(self._now() - started)
        self._feed(AssignAnswered(now=self._now(), job=command.job, epoch=command.epoch, answer=answer))

    async def _ask(self, command: SendAssign, record: JobRecord) -> Answer:
        message = Assign(
            job=command.job,
            epoch=command.epoch,
            worker=command.worker,
            incarnation=command.incarnation,
            request=record.request,
            run_timeout_s=record.run_timeout_s,
            tenant=record.tenant,
        )
        subject = assign_subject(command.worker, command.incarnation)
        try:
            return _replies.decode(await self._bus.request(subject, encode(message), self._settings.assign_timeout_s))
        except NoResponders:
            return NoListener()
        except (BusUnavailable, InvalidKey):
            return NoAnswer()
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_reply", worker=command.worker, error=str(error))
            return NoAnswer()

    async def _order(self, command: SendCancel) -> None:
        found = await self._read(command.job)
        if found is not None and found.value is not None:
            seen = self._summaries.of_entry(found, 0.0)
            here = (seen.epoch, seen.worker, seen.incarnation) == (command.epoch, command.worker, command.incarnation)
            rightful = here and seen.state in ACTIVE and seen.state is not State.CANCELLING
            if rightful or seen.epoch < command.epoch:
                self._see_job(found, live=True)
                return
        key = cancel_key(command.worker, command.incarnation, command.job, command.epoch)
        order = encode(CancelOrder(job=command.job, epoch=command.epoch))
        try:
            await self._answered(lambda: self._orders.put(key, order))
            await self._bus.publish(nudge_subject(command.worker, command.incarnation), order)
        except (BusUnavailable, BucketFull, InvalidKey) as error:
            # The core asks again for as long as it matters.
            _LOG.warning("order_not_sent", job=command.job, epoch=command.epoch, error=type(error).__name__)

    async def _drop(self, command: DropResult) -> None:
        result = command.result
        if not command.certain:
            found = await self._read(result.job)
            if found is not None and found.value is not None:
                seen = self._summaries.of_entry(found, 0.0)
                if seen.epoch < result.epoch or (seen.epoch == result.epoch and seen.state in ACTIVE):
                    self._see_job(found, live=True)
                    self._feed(ResultSeen(now=self._now(), result=result))
                    return
        key = result_key(result.worker, result.job, result.epoch)
        await self._answered(lambda: self._results.purge(key))


def _written_at(base: Entry, wanted: JobRecord) -> float:
    """When a write that replaced ``base`` was made, by the broker's clock: by how much the record has aged."""
    before = decode(base.value or b"", JobRecord).age_s
    return base.timestamp + wanted.age_s - before


def _moved(record: JobRecord, command: WriteRecord, stamp: Stamp) -> JobRecord:
    match command.move:
        case ToAssigned(worker=worker, incarnation=incarnation):
            return assign(record, worker, incarnation, stamp)
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
