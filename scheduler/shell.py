"""The scheduler's shell: tells the core what happens, and does what the core commands.

Three followers (jobs, workers, results; see ``watch``) and a ticker feed ``decide``; each command becomes work on a
lane with bounded concurrency, whose outcome is fed back (``writes``, ``sends``). Any number of these may run at once on
one broker: every write is a compare-and-set.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import assert_never, cast

from scheduler.archive import Archive
from scheduler.commands import (
    Command,
    DropResult,
    SendAssign,
    SendCancel,
    WriteQuarantine,
    WriteRecord,
)
from scheduler.decide import decide
from scheduler.events import (
    CaughtUp,
    Event,
    Leads,
    Reset,
    Stream,
    Tick,
    WriteLost,
)
from scheduler.grants import Granting
from scheduler.leader import Election, Leader
from scheduler.ledger import Ledger
from scheduler.leftovers import Leftovers
from scheduler.metrics import Metrics
from scheduler.policy import Times
from scheduler.sends import Sends
from scheduler.state import CoreState
from scheduler.sweep import Sweep
from scheduler.watch import Watch
from scheduler.writes import Writes
from shared.artifacts import Artifacts
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import CONTROL, JOBS, MODELS, RESULTS, USAGE, WORKERS

TICK_S = 0.1
WRITES_AT_ONCE = 64
REQUESTS_AT_ONCE = 512
#: Of results that are folded: no job waits for it.
DROPS_AT_ONCE = 16

_LOG = log(__name__)


def times_of(settings: Settings) -> Times:
    """The core's durations and limits, as the settings give them."""
    return Times(
        lease_s=settings.lease_s,
        ageing_s=settings.ageing_s,
        half_life_s=settings.share_half_life_s,
        overdue_s=settings.overdue_s,
        backoff_s=settings.backoff_s,
        quarantine_after=settings.quarantine_after,
        quarantine_s=settings.quarantine_s,
        max_running=settings.limit_running or None,
    )


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
        election: who leads; by default the bucket ``leader`` decides.
        artifacts: the files of jobs, for those of them that nobody keeps any more; None leaves them alone.

    Attributes:
        ready: set when the buckets have been read, so that decisions are made, or would be if this process led.
        state: the core's; read only.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        clock: Clock,
        name: str | None = None,
        times: Times | None = None,
        election: Election | None = None,
        artifacts: Artifacts | None = None,
    ) -> None:
        self.name = name or f"scheduler-{secrets.token_hex(4)}"
        self.ready = asyncio.Event()
        self.state = CoreState(times or times_of(settings))
        self.metrics = Metrics()
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._jobs = bus.bucket(JOBS.name)
        self._results = bus.bucket(RESULTS.name)
        self._leases = bus.bucket(WORKERS.name)
        self._archive = Archive(
            bus, settings, clock, self.metrics, artifacts, lambda: self.state.ready, lambda: self.state.shares.tenants
        )
        self._sweep = None
        if artifacts is not None:
            self._sweep = Sweep(bus, clock, self.metrics, artifacts, lambda: self.state.ready)
            self._archive.cleanup.sweep = self._sweep.now
        self._watch = Watch(bus, clock, self.name, self._feed, self._archive)
        leftovers = Leftovers(bus, clock, self.metrics, artifacts)
        self._writes = Writes(bus, clock, self.name, self._watch, leftovers, self.metrics, self._feed)
        self.election = election or Leader(
            bus, clock, self.name, settings.leader_lease_s, self.metrics, self._lead_changed
        )
        granting = Granting(settings, artifacts, clock)
        self._sends = Sends(bus, settings, clock, self._watch, granting, self.metrics, self.election.leads, self._feed)
        self._ledger = Ledger(
            bus, clock, self.state.shares, lambda: self.state.ready, self._watch.age, self._feed, self._is_there
        )
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Schedule until cancelled or ``stop``."""
        self._task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            await self._watch.know_broker_clock()
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._writing = _Lane(group, WRITES_AT_ONCE)
                self._asking = _Lane(group, REQUESTS_AT_ONCE)
                self._dropping = _Lane(group, DROPS_AT_ONCE)
                group.create_task(self._follow(self._jobs.follow(), Stream.JOBS, self._watch.hear_job))
                group.create_task(self._follow(self._leases.follow(), Stream.WORKERS, self._watch.see_lease))
                group.create_task(self._follow(self._results.follow(), Stream.RESULTS, self._watch.see_result))
                control, usage = self._bus.bucket(CONTROL.name), self._bus.bucket(USAGE.name)
                group.create_task(self._follow(control.follow(), Stream.CONTROL, self._ledger.see_control))
                group.create_task(self._follow(usage.follow(), Stream.USAGE, self._ledger.see_usage))
                models = self._bus.bucket(MODELS.name)
                group.create_task(self._follow(models.follow(), Stream.MODELS, self._ledger.see_model))
                group.create_task(self._tick())
                group.create_task(self._ledger.run())
                group.create_task(self.election.run())
                group.create_task(self._archive.run())
                if self._sweep is not None:
                    group.create_task(self._sweep.run())
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """End ``run``; what it had begun is found again by whoever leads next, at once."""
        if self._task is not None:
            await self.election.leave()
            self._task.cancel()
            await self._ended.wait()

    # --- in: what happens --------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._lead_changed(self.election.leads())
        self._decide(event)

    def _decide(self, event: Event) -> None:
        for command in decide(self.state, event):
            self._do(command)
        if len(self.state.caught) == len(Stream) and not self.ready.is_set():
            self.ready.set()
            _LOG.info("scheduling", scheduler=self.name, open_jobs=len(self.state.jobs), leads=self.state.leading)
            if self.state.leading:
                self._group.create_task(self._read_results_again())  # it may have led only when half was read

    def _lead_changed(self, leads: bool) -> None:
        if leads == self.state.leading:
            return
        self._decide(Leads(now=self._now(), leading=leads))
        if leads and self.ready.is_set():
            self._group.create_task(self._read_results_again())

    async def _read_results_again(self) -> None:
        """A standby keeps no results of jobs that have ended; the leader that is gone may not have dropped them."""
        async with aclosing(cast("AsyncGenerator[Batch, None]", self._results.follow())) as following:
            async for batch in following:
                for entry in batch.entries:
                    self._watch.see_result(entry, live=False)
                if batch.caught_up:
                    return

    def _is_there(self, worker: str) -> bool:
        known = self.state.workers.get(worker)
        return known is not None and not known.gone

    def _now(self) -> float:
        return self._clock.monotonic()

    async def _follow(
        self, batches: AsyncIterator[Batch], stream: Stream, see: Callable[[Entry, bool], object]
    ) -> None:
        live = False
        async with aclosing(cast("AsyncGenerator[Batch, None]", batches)) as following:
            async for batch in following:
                await self._watch.know_broker_clock()
                if batch.reset:
                    _LOG.warning("bucket_made_anew", bucket=stream)
                    self._ledger.made_anew(stream)
                    if stream is Stream.JOBS:
                        self._watch.jobs_made_anew()
                    self._feed(Reset(now=self._now(), stream=stream))
                for entry in batch.entries:
                    see(entry, live)
                if batch.caught_up and not live:
                    live = True
                    self._feed(CaughtUp(now=self._now(), stream=stream))

    async def _tick(self) -> None:
        shown = 0.0
        while True:
            await self._clock.sleep(TICK_S)
            now, contact_s = self._now(), self._bus.contact_s()
            self._watch.contact(contact_s)
            self._feed(Tick(now=now, contact_s=contact_s))
            if now - shown >= 1.0:
                shown = now
                self.metrics.show(self.state)

    # --- out: what is commanded --------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        match command:
            case WriteRecord():
                self._writing.put(lambda: self._write(command))
            case DropResult():
                self._dropping.put(lambda: self._writes.drop(command))
            case WriteQuarantine():
                self._writing.put(lambda: self._ledger.write(command))
            case SendAssign():
                self._asking.put(lambda: self._sends.send(command))
            case SendCancel():
                self._asking.put(lambda: self._sends.order(command))
            case _:
                assert_never(command)

    async def _write(self, command: WriteRecord) -> None:
        if self.election.leads():
            await self._writes.write(command)
        else:
            self._feed(WriteLost(now=self._now(), job=command.job))
