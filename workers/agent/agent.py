"""The agent: one process per device pool; between the bus and the group.

It has as many jobs at a time as its group holds: one, except with the dummy engine. What runs beside each other in it:

    renew            publish the lease every third of it, and at once on a change, but not at every one of very many;
                     announce the models
    follow orders    read orders at the same beat, at once when nudged, and once soon after a job began
    group            launch, serve, relaunch (``group``)
    work             each attempt, its progress, its result; then idle again

The lease says ``busy`` until the result is written, so a broker that is away for a minute costs no job: when it comes
back, the lease still holds the job and the result follows.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from shared.artifacts import Artifacts
from shared.bus import Bus, Subscription
from shared.clock import Clock
from shared.errors import BusUnavailable
from shared.messages import (
    Accepted,
    Assign,
    CannotServe,
    WorkerLease,
    WorkerState,
    decode,
    encode,
)
from shared.moderation import Moderation
from shared.settings import Settings
from shared.telemetry import about, log
from shared.topology import assign_subject, nudge_subject
from workers.agent.assignment import Accepts, Situation, answer
from workers.agent.attempt import Attempt
from workers.agent.downloads import Downloads
from workers.agent.granted import GrantedStore
from workers.agent.group import Group, Phase
from workers.agent.lease import LeaseKeeper, LeasePace, Superseded
from workers.agent.metrics import AgentMetrics
from workers.agent.orders import UNREADABLE, Orders, Stop
from workers.agent.process import Launcher
from workers.agent.pulling import Pulls
from workers.agent.race import first
from workers.agent.results import Results
from workers.agent.work import Work
from workers.pool import Pool

#: Seconds after which a lease that was not confirmed is tried again.
RETRY_S = 0.5
#: Seconds that an assignment waits for the present job's result to be confirmed.
SETTLE_S = 0.5
#: An attempt's orders are read when it is so old: most orders come with a nudge, and short jobs need no reading.
FIRST_LOOK_S = 0.25
#: A nudge so long before a job began may have been about it.
RECENT_S = 1.0

_log = log(__name__)


class Agent:
    """One start of one worker. ``run`` is its life; ``stop`` ends it in good order.

    Attributes:
        incarnation: names this start.
        ready: set when a lease that says idle was confirmed for the first time.
    """

    def __init__(
        self,
        bus: Bus,
        artifacts: Artifacts | GrantedStore,
        pool: Pool,
        settings: Settings,
        clock: Clock,
        *,
        worker: str,
        incarnation: str,
        launcher: Launcher,
        runtime_dir: Path,
        metrics: AgentMetrics | None = None,
        pulls: Pulls | None = None,
    ) -> None:
        """
        Args:
            artifacts: the store, or the way to what assignments grant of it.
            worker: its name, unique in the fleet.
            incarnation: a fresh token.
            runtime_dir: a private folder for sockets and jobs' files.
            pulls: as ``Group``'s.
        """
        self._bus = bus
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._worker = worker
        self.incarnation = incarnation
        self._metrics = metrics or AgentMetrics()
        self._group = Group(pool, launcher, clock, runtime_dir, self._change, pulls)
        self._lease = LeaseKeeper(bus)
        self._orders = Orders(bus, worker, incarnation)
        self._accepts = Accepts()
        self._downloads = Downloads.of(settings, clock)
        self._work = Work(
            bus=bus,
            artifacts=artifacts,
            downloads=self._downloads,
            moderation=Moderation.of(settings),
            clock=clock,
            group=self._group,
            results=Results(bus, clock),
            metrics=self._metrics,
            capacity=pool.capacity,
            stop_grace_s=pool.limits.stop_grace_s,
            provenance=settings.provenance,
            work_dir=runtime_dir / "jobs",
            changed=self._change,
        )
        self._by_grants = isinstance(artifacts, GrantedStore)
        self._drain_ordered = False
        self._drain_begun = asyncio.Event()
        self._hand_back = asyncio.Event()
        self._leaving = asyncio.Event()
        self._changed = asyncio.Event()
        self._nudged = asyncio.Event()
        self._nudged_at = float("-inf")
        self._listening = False
        self._subscriptions: list[Subscription] = []
        self._tasks: asyncio.TaskGroup | None = None
        self.ready = asyncio.Event()

    # --- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until ``stop`` and what it entails, or until cancelled; then nothing of the group is left.

        Raises:
            Superseded: another agent has started under this name.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                group = tasks.create_task(self._group.run())
                services = [
                    tasks.create_task(service)
                    for service in (
                        self._listen(),
                        self._renew(),
                        self._follow_orders(),
                        self._drain(),
                    )
                ]
                await self._leaving.wait()
                await self._work.free.wait()
                self._group.quit()
                await group
                for service in services:
                    service.cancel()
        except* Superseded as superseded:
            raise superseded.exceptions[0] from None
        finally:
            for subscription in self._subscriptions:
                await subscription.close()
            await self._downloads.close()
        await self._lease.withdraw(self._worker, self.incarnation)

    def stop(self) -> None:
        """Take no more jobs, end the present one within the drain grace, then leave. Called again: hand back now."""
        if self._leaving.is_set():
            self._hand_back.set()
        self._leaving.set()
        self._drain_begun.set()
        self._change()

    async def _listen(self) -> None:
        wanted = {
            assign_subject(self._worker, self.incarnation): self._assigned,
            nudge_subject(self._worker, self.incarnation): self._nudge,
        }
        for subject, handler in wanted.items():
            while True:
                try:
                    self._subscriptions.append(await self._bus.subscribe(subject, handler))
                    break
                except BusUnavailable:
                    await self._clock.sleep(RETRY_S)
        self._listening = True
        self._change()

    def _change(self) -> None:
        self._changed.set()

    # --- lease -------------------------------------------------------------------------------------------------------

    @property
    def _draining(self) -> bool:
        return self._leaving.is_set() or self._drain_ordered

    @property
    def state(self) -> WorkerState:
        """What the lease says."""
        if self._draining:
            return WorkerState.DRAINING
        if self._group.phase is Phase.BROKEN:
            return WorkerState.BROKEN
        if self._group.phase is Phase.SWAPPING and self._listening:
            return WorkerState.BUSY
        if self._group.phase is not Phase.READY or not self._listening:
            return WorkerState.STARTING
        return WorkerState.IDLE if self._work.room.is_set() else WorkerState.BUSY

    def _snapshot(self) -> WorkerLease:
        group = self._group
        return WorkerLease(
            worker=self._worker,
            incarnation=self.incarnation,
            beat=0,
            lease_s=self._settings.lease_s,
            state=self.state,
            pool=self._pool.name,
            host=socket.gethostname(),
            device=group.device or self._pool.device,
            device_name=group.device_name,
            device_memory=group.device_memory,
            width=group.width,
            full_width=group.full_width,
            models=tuple(card.name for card in group.models.cards),
            layouts=group.models.layouts(),
            held=self._work.held,
            capacity=self._pool.capacity,
            loaded=group.loaded,
            detail=group.detail or group.doing or (group.models.detail or group.models.acceleration)[:500],
            step_s=dict(self._work.step_s),
            loaded_models=group.models.loaded,
            load_s=dict(group.models.load_s),
            grants=self._by_grants,
        )

    async def _renew(self) -> None:
        period = self._settings.lease_s / 3
        pace = LeasePace(self._clock.monotonic())
        while True:
            wait = pace.wait(self._clock.monotonic())
            if wait > 0:
                await self._clock.sleep(wait)
            self._changed.clear()
            lease = self._snapshot()
            confirmed = await self._lease.publish(lease)
            self._metrics.show(lease, self._group.launched, self._group.ends, self._lease.failures)
            self._metrics.show_acceleration(self._group.models.acceleration)
            if confirmed:
                await self._lease.announce(self._worker, self._group.models.cards)
            if confirmed and lease.state is WorkerState.IDLE and not self.ready.is_set():
                _log.info("ready", worker=self._worker, incarnation=self.incarnation, models=lease.models)
                self.ready.set()
            await first(self._clock.sleep(period if confirmed else min(period, RETRY_S)), self._wait(self._changed))

    async def _wait(self, event: asyncio.Event) -> None:
        await event.wait()

    # --- orders ------------------------------------------------------------------------------------------------------

    async def _nudge(self, payload: bytes) -> None:
        self._nudged_at = self._clock.monotonic()
        self._nudged.set()

    async def _follow_orders(self) -> None:
        while True:
            self._nudged.clear()
            await self._look_at_drain()
            for attempt in list(self._work.attempts.values()):
                await self._look_at(attempt)
            due = self._clock.monotonic() + self._settings.lease_s / 3
            while not self._nudged.is_set() and (left := due - self._clock.monotonic()) > 0:
                await first(self._clock.sleep(min(left, FIRST_LOOK_S)), self._wait(self._nudged))
                for attempt in list(self._work.attempts.values()):
                    if not attempt.looked_at and attempt.seconds >= FIRST_LOOK_S:
                        await self._look_at(attempt)

    async def _look_at_drain(self) -> None:
        drain = await self._orders.drain()
        if drain is not None and drain is not self._drain_ordered:
            _log.info("drain_ordered" if drain else "drain_lifted")
            self._drain_ordered = drain
            if drain:
                self._drain_begun.set()
            self._change()

    async def _look_at(self, attempt: Attempt) -> None:
        attempt.looked_at = True
        why = await self._orders.stop(attempt.assign.job, attempt.assign.epoch)
        if why is not None:
            attempt.stop(why)

    async def _drain(self) -> None:
        while True:
            await self._drain_begun.wait()
            self._drain_begun.clear()
            attempts = list(self._work.attempts.values())
            _log.info("draining", grace_s=self._settings.drain_grace_s, jobs=len(attempts))
            if not attempts:
                continue
            await first(
                self._clock.sleep(self._settings.drain_grace_s),
                self._wait(self._hand_back),
                self._wait(self._work.free),
            )
            if self._draining:
                for attempt in attempts:
                    attempt.stop(Stop.DRAIN)

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def _assigned(self, payload: bytes) -> bytes:
        try:
            assign = decode(payload, Assign)
        except UNREADABLE as error:
            return encode(CannotServe(message=f"this worker's version cannot read it: {error}"[:500]))
        if self._work.delivering and not self._has_room(assign.job):
            # Whoever saw a result may be faster with the next job than the bus with its word that it has the result.
            until = self._clock.monotonic() + SETTLE_S
            while (
                self._work.delivering
                and not self._has_room(assign.job)
                and (left := until - self._clock.monotonic()) > 0
            ):
                await first(self._clock.sleep(left), self._wait(self._work.next_end))
        last_epoch = self._accepts.last(assign.job)
        reply = answer(assign, self._situation(assign), last_epoch)
        if not isinstance(reply, Accepted):
            self._metrics.refusals.labels(type(reply).__name__).inc()
            with about(assign.job, assign.epoch):
                _log.info("assignment_refused", reply=type(reply).__name__)
            self._end_older(assign)
        elif last_epoch != assign.epoch and self._tasks is not None:
            self._accepts.add(assign.job, assign.epoch)
            self._work.begin(assign, self._tasks)
            if self._clock.monotonic() - self._nudged_at < RECENT_S:
                # The order to cancel may have been there before the job was.
                self._nudged.set()
        return encode(reply)

    def _end_older(self, assign: Assign) -> None:
        """An assignment of a job that is held at an earlier epoch says that the earlier attempt is over."""
        held = self._work.attempts.get(assign.job)
        ours = (assign.worker, assign.incarnation) == (self._worker, self.incarnation)
        if held is not None and ours and held.assign.epoch < assign.epoch:
            held.stop(Stop.TAKEN)

    def _has_room(self, job: str) -> bool:
        return self._work.room.is_set() and job not in self._work.attempts

    def _situation(self, assign: Assign) -> Situation:
        group, model = self._group, assign.request.model
        return Situation(
            worker=self._worker,
            incarnation=self.incarnation,
            draining=self._draining,
            busy=not self._has_room(assign.job),
            phase=group.phase,
            detail=group.detail,
            cards=group.models.cards,
            layouts=group.models.layouts(model),
            needs_files=self._by_grants,
            in_the_way=bool(self._work.attempts) and not group.models.has(model),
        )


def fresh_incarnation() -> str:
    """A token for one start of one agent."""
    return os.urandom(6).hex()
