"""A worker that does as it is told: leases, replies and results over a bus, with every reply and end scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shared.bus import Bus, Subscription
from shared.clock import Clock
from shared.errors import BusUnavailable
from shared.messages import (
    Accepted,
    Assign,
    AssignReply,
    Busy,
    Cancelled,
    CancelOrder,
    Held,
    Layout,
    Outcome,
    Output,
    Result,
    Succeeded,
    WorkerLease,
    WorkerState,
    decode,
    encode,
)
from shared.topology import ORDERS, RESULTS, WORKERS, assign_subject, nudge_subject, output_key, result_key

DONE = Succeeded(
    outputs=(Output(key="x", media_type="video/mp4", size=1, sha256="0" * 64, width=8, height=8, num_frames=1, fps=1),)
)


class ScriptedWorker:
    """One start of one agent.

    Attributes:
        replies: answers to the next assignments, before the honest ones.
        run_s: how long a job takes; None: until the test calls ``finish``.
        outcome: how a job ends.
        assigned: every assignment that arrived, repetitions included.
        held: what it holds, as its lease says.
        results: every result it has written.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        name: str = "w1",
        incarnation: str = "w1-a",
        models: tuple[str, ...] = ("dummy",),
        layouts: tuple[Layout, ...] = (Layout(),),
        capacity: int = 1,
        lease_s: float = 6.0,
        run_s: float | None = None,
        outcome: Outcome = DONE,
        device: str = "cpu",
        device_name: str = "",
    ) -> None:
        self.name, self.incarnation = name, incarnation
        self.models, self.layouts, self.capacity, self.lease_s = models, layouts, capacity, lease_s
        self.run_s, self.outcome = run_s, outcome
        self.device, self.device_name = device, device_name
        self.state: WorkerState | None = None
        self.replies: list[AssignReply] = []
        self.assigned: list[Assign] = []
        self.held: dict[tuple[str, int], str] = {}
        self.results: list[Result] = []
        self.orders: list[tuple[str, int]] = []
        self.obeys = True
        self.on_assign: Callable[[Assign], Awaitable[None]] | None = None
        self._bus, self._clock = bus, clock
        self._beat = 0
        self._ended: set[tuple[str, int]] = set()
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, and renew the lease from now on."""
        listen = self._bus.subscribe
        self._subscriptions = [
            await listen(assign_subject(self.name, self.incarnation), self._take),
            await listen(nudge_subject(self.name, self.incarnation), self._nudged),
        ]
        await self.renew()
        self._spawn(self._renew_for_ever())

    async def die(self) -> None:
        """``kill -9``: nothing more comes from it, and its lease stays until it runs out."""
        for task in list(self._tasks):
            task.cancel()
        for subscription in self._subscriptions:
            await subscription.close()

    async def renew(self) -> None:
        """Write the lease once."""
        self._beat += 1
        busy = len(self.held) >= self.capacity
        lease = WorkerLease(
            worker=self.name,
            incarnation=self.incarnation,
            beat=self._beat,
            lease_s=self.lease_s,
            state=self.state or (WorkerState.BUSY if busy else WorkerState.IDLE),
            models=self.models,
            layouts=self.layouts,
            held=tuple(Held(job=job, epoch=epoch) for job, epoch in self.held),
            capacity=self.capacity,
            device=self.device,
            device_name=self.device_name,
        )
        await self._bus.bucket(WORKERS.name).put(self.name, encode(lease))

    async def finish(self, job: str, outcome: Outcome | None = None) -> None:
        """End the job that it holds."""
        (key,) = [key for key in self.held if key[0] == job]
        await self._end(key, outcome or self.outcome)

    async def _renew_for_ever(self) -> None:
        while True:
            await self._clock.sleep(self.lease_s / 3)
            try:
                await self.renew()
                await self._read_orders()
            except BusUnavailable:
                continue

    async def _take(self, payload: bytes) -> bytes:
        assign = decode(payload, Assign)
        self.assigned.append(assign)
        if self.on_assign is not None:
            await self.on_assign(assign)
        if self.replies:
            return encode(self.replies.pop(0))
        key = (assign.job, assign.epoch)
        if key not in self.held and key not in self._ended:
            if len(self.held) >= self.capacity:
                return encode(Busy())
            self.held[key] = assign.job
            if self.run_s is not None:
                self._spawn(self._work(key, self.run_s))
        return encode(Accepted())

    async def _work(self, key: tuple[str, int], seconds: float) -> None:
        await self._clock.sleep(seconds)
        if key in self.held:
            await self._end(key, self.outcome)

    async def _end(self, key: tuple[str, int], outcome: Outcome) -> None:
        job, epoch = key
        if isinstance(outcome, Succeeded):
            files = tuple(
                Output(key=output_key(job, epoch, "0.mp4"), media_type="video/mp4", size=1, sha256="0" * 64)
                for _ in outcome.outputs
            )
            outcome = Succeeded(outputs=files)
        result = Result(
            job=job, epoch=epoch, worker=self.name, incarnation=self.incarnation, outcome=outcome, ran_s=1.0
        )
        while True:
            try:
                await self._bus.bucket(RESULTS.name).put(result_key(self.name, job, epoch), encode(result))
                break
            except BusUnavailable:
                await self._clock.sleep(0.5)
        self.results.append(result)
        self.held.pop(key, None)
        self._ended.add(key)

    async def _nudged(self, payload: bytes) -> None:
        await self._read_orders()

    async def _read_orders(self) -> None:
        bucket = self._bus.bucket(ORDERS.name)
        for job, epoch in list(self.held):
            entry = await bucket.get(f"{self.name}.{self.incarnation}.{job}.{epoch}")
            if entry is None or entry.value is None:
                continue
            order = decode(entry.value, CancelOrder)
            self.orders.append((order.job, order.epoch))
            if self.obeys and (job, epoch) in self.held:
                await self._end((job, epoch), Cancelled())

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
