"""A rank 0 in the test's own process, and an agent around it: over a real Unix socket, on the in-memory bus.

The socket and the agent's threads are real, so a test that moves the fake clock first awaits the state it wants to
move on from (``until``).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from shared.artifacts import Artifacts, open_store
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusUnavailable
from shared.lifecycle import Stamp, assign, born, run
from shared.messages import (
    Assign,
    AssignReply,
    CancelOrder,
    JobRecord,
    JobRequest,
    Layout,
    Progress,
    Result,
    WorkerLease,
    WorkerState,
    decode,
    encode,
)
from shared.settings import Settings
from shared.topology import (
    JOBS,
    ORDERS,
    PROGRESS,
    RESULTS,
    WORKERS,
    assign_subject,
    cancel_key,
    progress_key,
    result_key,
)
from tests.support.memory_bus import MemoryBroker
from workers.agent.agent import Agent
from workers.agent.metrics import AgentMetrics
from workers.agent.process import GroupProcess, Launcher
from workers.agent.pulling import Pulls
from workers.engine.dummy import card
from workers.link import Frame, FromAgent, Hello, LinkClosed, Ready, pack, unpack_from_agent
from workers.pool import Pool

BOUND_S = 90.0
WORKER = "w1"
INCARNATION = "i1"
T = TypeVar("T")


async def until(probe: Callable[[], T | bool | None], what: str = "") -> T:
    """Let the loop, its sockets and threads go on until the probe gives something true."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = probe()
            if found:
                return found  # type: ignore[return-value]
            await asyncio.sleep(0.001)


async def eventually(probe: Callable[[], Awaitable[T | None]], what: str) -> T:
    """As ``until``, for a probe that must itself ask; one that fails with the bus has found nothing."""
    async with asyncio.timeout(BOUND_S):
        while True:
            with contextlib.suppress(BusUnavailable):
                found = await probe()
                if found is not None:
                    return found
            await asyncio.sleep(0.02)


class ScriptedRank:
    """Rank 0 of one launch, and its process.

    Attributes:
        width, first_device, model: as launched.
    """

    def __init__(self, link: Path, width: int, first_device: int, model: str = "") -> None:
        self.link = link
        self.width = width
        self.first_device = first_device
        self.model = model
        self._killed = False
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    # as a process

    async def wait(self) -> int:
        return await asyncio.shield(self._status)

    async def kill(self) -> None:
        self._killed = True
        self.die(-9)

    def killed(self) -> bool:
        """The agent killed it."""
        return self._killed

    def die(self, status: int = 1) -> None:
        """End the process; the socket closes with it."""
        if not self._status.done():
            self._status.set_result(status)
        if self._writer is not None:
            self._writer.close()

    # as rank 0

    async def connect(self) -> None:
        """Connect to the agent."""
        self._reader, self._writer = await asyncio.open_unix_connection(self.link)

    async def come_up(self, *layouts: Layout) -> None:
        """Connect, say hello and be ready."""
        await self.connect()
        self.say(Hello(pid=1, width=self.width, device="cpu", device_name="scripted"))
        self.say(Ready(cards=(card(self.model or "dummy"),), layouts=layouts))

    async def come_up_beside(self, *others: str, device_memory: int = 0) -> None:
        """The same, for a pool of several models."""
        await self.connect()
        self.say(Hello(pid=1, width=self.width, device="cpu", device_name="scripted"))
        cards = tuple(card(name) for name in others)
        self.say(Ready(cards=(card(self.model),), layouts=(Layout(),), others=cards, device_memory=device_memory))

    def say(self, frame: Frame) -> None:
        """Send a frame."""
        self.say_bytes(pack(frame))

    def say_bytes(self, data: bytes) -> None:
        """Send anything."""
        assert self._writer is not None
        self._writer.write(data)

    async def hear(self) -> FromAgent:
        """The agent's next frame.

        Raises:
            LinkClosed: it closed the link.
        """
        assert self._reader is not None
        try:
            async with asyncio.timeout(BOUND_S):
                (length,) = struct.unpack(">I", await self._reader.readexactly(4))
                return unpack_from_agent(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise LinkClosed from error


class ScriptedLauncher:
    """Launches scripted ranks; the test takes each launch with ``launched``."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[ScriptedRank] = asyncio.Queue()
        self.all: list[ScriptedRank] = []

    async def launch(self, link: Path, width: int, first_device: int, model: str = "") -> GroupProcess:
        rank = ScriptedRank(link, width, first_device, model)
        self.all.append(rank)
        self._queue.put_nowait(rank)
        return rank

    async def launched(self) -> ScriptedRank:
        """The next launch."""
        async with asyncio.timeout(BOUND_S):
            return await self._queue.get()


@dataclass
class AgentHouse:
    """An agent with all it needs, and the scheduler's part played by the test."""

    broker: MemoryBroker
    clock: Clock
    agent: Agent
    artifacts: Artifacts
    bus: Bus
    runtime_dir: Path
    metrics: AgentMetrics
    running: asyncio.Task[None] = field(init=False)

    def lease(self) -> WorkerLease | None:
        """The lease as the broker has it now."""
        entry = self.broker.streams[WORKERS.name].last.get(WORKER)
        return None if entry is None or entry.value is None else decode(entry.value, WorkerLease)

    async def state(self, state: WorkerState) -> WorkerLease:
        """Wait for the lease to say that."""

        def there() -> WorkerLease | None:
            lease = self.lease()
            return lease if lease is not None and lease.state is state else None

        return await until(there, f"state {state}")

    async def write_running(self, job: str, epoch: int = 1) -> JobRecord:
        """Write the record of a job that runs here, at that epoch."""
        record = JobRecord(id=job, request=a_request(), payload_hash="", created_at=0.0)
        stamp = Stamp(by="test", at=0.0)
        record = replace(born(record, stamp), epoch=epoch - 1)
        record = run(assign(record, WORKER, INCARNATION, stamp), stamp)
        await self.write(record)
        return record

    async def write(self, record: JobRecord) -> None:
        """Write a record, whatever was there."""
        await self.bus.bucket(JOBS.name).put(record.id, encode(record))

    async def order_cancel(self, job: str, epoch: int = 1) -> None:
        """Write the order to cancel; a nudge makes it quick."""
        order = CancelOrder(job=job, epoch=epoch)
        await self.bus.bucket(ORDERS.name).put(cancel_key(WORKER, INCARNATION, job, epoch), encode(order))

    async def assign(
        self, job: str, epoch: int = 1, *, request: JobRequest | None = None, run_timeout_s: float = 3600.0
    ) -> AssignReply:
        """Write the record and assign the job; the agent's reply."""
        await self.write_running(job, epoch)
        return await self.send(job, epoch, request=request, run_timeout_s=run_timeout_s)

    async def send(
        self,
        job: str,
        epoch: int = 1,
        *,
        request: JobRequest | None = None,
        run_timeout_s: float = 3600.0,
        incarnation: str = INCARNATION,
    ) -> AssignReply:
        """Send an assignment; the agent's reply."""
        message = Assign(
            job=job,
            epoch=epoch,
            worker=WORKER,
            incarnation=incarnation,
            request=request or a_request(),
            run_timeout_s=run_timeout_s,
        )
        subject = assign_subject(WORKER, INCARNATION)
        return decode(await self.bus.request(subject, encode(message), BOUND_S), AssignReply)  # type: ignore[arg-type]

    def result_now(self, job: str, epoch: int = 1) -> Result | None:
        """The result, if it is there."""
        entry = self.broker.streams[RESULTS.name].last.get(result_key(WORKER, job, epoch))
        return None if entry is None or entry.value is None else decode(entry.value, Result)

    async def result(self, job: str, epoch: int = 1) -> Result:
        """Wait for the result."""
        return await until(lambda: self.result_now(job, epoch), f"result of {job}")

    def progress(self, job: str) -> Progress | None:
        """The job's progress as the broker has it now."""
        entry = self.broker.streams[PROGRESS.name].last.get(progress_key(WORKER, job))
        return None if entry is None or entry.value is None else decode(entry.value, Progress)

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value; 0.0 if it has none yet."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def heard(self, steps: int) -> None:
        """Wait until the agent has heard so many measured steps."""
        await until(lambda: self.metric("genfleet_step_seconds_count", model="dummy") >= steps, f"{steps} steps heard")

    async def files(self, prefix: str) -> list[str]:
        """The keys in the store below a prefix."""
        return sorted([stored.key async for stored in self.artifacts.list(prefix)])


def a_request(**changes: object) -> JobRequest:
    """A request that the dummy and scripted groups serve."""
    values: dict[str, object] = {
        "model": "dummy",
        "task": "text-to-image",
        "prompt": "a lighthouse",
        "width": 64,
        "height": 64,
        "num_frames": 1,
        "fps": 16,
        "steps": 3,
        "guidance_scale": 5.0,
        "shift": 5.0,
        "solver": "unipc",
        "seed": 7,
    }
    return JobRequest(**{**values, **changes})  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def agent_house(
    clock: Clock,
    launcher: Launcher,
    folder: Path,
    *,
    pool: Pool | None = None,
    settings: Settings | None = None,
    broker: MemoryBroker | None = None,
    pulls: Pulls | None = None,
) -> AsyncIterator[AgentHouse]:
    """An agent that runs until the block ends."""
    broker = broker or MemoryBroker(clock)
    artifacts = open_store(str(folder / "store"))
    runtime_dir = folder / "run"
    metrics = AgentMetrics()
    agent = Agent(
        broker.connect("agent"),
        artifacts,
        pool or Pool(model="dummy"),
        settings or Settings(),
        clock,
        worker=WORKER,
        incarnation=INCARNATION,
        launcher=launcher,
        runtime_dir=runtime_dir,
        metrics=metrics,
        pulls=pulls,
    )
    house = AgentHouse(broker, clock, agent, artifacts, broker.connect("test"), runtime_dir, metrics)
    house.running = asyncio.create_task(agent.run())
    try:
        yield house
    finally:
        if not house.running.done():
            house.running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await house.running
