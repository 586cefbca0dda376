"""A whole fleet in one loop: gateways, schedulers and agents as processes that are started again when they end."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateway.admission import Admission
from gateway.changes import Changes
from gateway.live import Live
from gateway.schema.requests import SubmitBody
from gateway.submit import Submissions
from gateway.webhooks.sending import Addresses
from scheduler.invariants import check
from scheduler.shell import Scheduler
from shared.guarded_http import Policy
from shared.messages import JobRecord
from shared.settings import Settings
from shared.topology import BUCKETS
from tests.simulation.loop import SimLoop
from tests.simulation.network import Broker, Network, SimBus
from tests.simulation.operators import Wishes
from tests.simulation.process import Process, SimClock
from tests.simulation.rank import SimLauncher
from tests.simulation.store import Files, SimArtifacts
from tests.simulation.witness import Witness
from workers.agent.agent import Agent
from workers.agent.lease import Superseded
from workers.pool import OtherModel, Pool, PoolLimits

#: Ended jobs that are kept of each tenant.
RETAINED = 5
#: Jobs are archived while faults still happen, and the oldest of a tenant expire within the run; a quarantine, which
#: doubles, ends within the time that a run has.
SETTINGS = Settings(
    drain_grace_s=4.0, lease_s=6.0, archive_after_s=8.0, marker_ttl_s=60.0, quarantine_s=2.0, retain_count=RETAINED
)
LIMITS = PoolLimits(load_timeout_s=20.0, silence_timeout_s=15.0, stop_grace_s=5.0)
#: Which models each worker serves, and with how many ranks.
WORKERS = ((("dummy",), 1), (("dummy",), 2), (("dummy", "dummy-b"), 1), (("dummy-b", "dummy"), 1))


class Slot:
    """A place for one process: what runs there now, and what is started when that has ended.

    Attributes:
        process, bus: of the present start.
    """

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.name = name
        self.fleet = fleet
        self._open = asyncio.Event()
        self._open.set()
        self.starts = 0
        self.process: Process = self._fresh()
        self.bus: SimBus = fleet.network.connect(self.process)

    def _fresh(self) -> Process:
        self.starts += 1
        return Process(self.fleet.loop, f"{self.name}.{self.starts}", self.fleet.seed)

    def main(self) -> Coroutine[Any, Any, None]:
        """What the process does."""
        raise AssertionError("which process is this?")

    def may_end_with(self, error: BaseException | None) -> bool:
        """Whether the process may end so by itself."""
        return False

    def shut(self) -> None:
        """End the process, and start none until ``reopen``."""
        self._open.clear()
        self.process.kill()

    def reopen(self) -> None:
        """Start it again."""
        self._open.set()

    async def keep(self) -> None:
        """Start the process, again whenever it ends."""
        while True:
            self.process.start(self.main())
            await asyncio.shield(self.process.ended)
            witness = self.fleet.witness
            witness.note(f"{self.process.name} ended")
            if self.process.error is not None and not self.may_end_with(self.process.error):
                witness.breaks(f"{self.process.name} died of {self.process.error!r}")
            await asyncio.sleep(self.process.random.uniform(0.2, 6.0))
            await self._open.wait()
            self.process = self._fresh()
            self.bus = self.fleet.network.connect(self.process)


class GatewaySlot(Slot):
    """A gateway without HTTP: what its routes call."""

    submissions: Submissions
    changes: Changes
    live: Live

    async def main(self) -> None:
        process, settings = self.process, self.fleet.settings
        artifacts = SimArtifacts(self.fleet.files, process)
        self.live = Live(self.bus, settings, process.clock)
        self.live.accounts.replicas.name = process.name  # by itself it would be another in each replay
        admission = Admission(self.bus, self.live, settings, process.clock)
        addresses = Addresses(Policy())
        self.submissions = Submissions(
            self.bus, artifacts, self.live, admission, settings, process.clock, process.name, addresses
        )
        self.changes = Changes(self.bus, artifacts, self.live, process.clock, process.name)
        self.live.start()
        await admission.watch()

    async def submit(self, tenant: str, key: str, body: SubmitBody) -> JobRecord:
        """``POST /v1/jobs``."""
        with ExitStack() as stack:
            return await self.process.ask(self.submissions.submit(tenant, body, {}, key, stack))


class SchedulerSlot(Slot):
    """A scheduler."""

    scheduler: Scheduler | None = None

    def main(self) -> Coroutine[Any, Any, None]:
        self.scheduler = Scheduler(
            self.bus,
            self.fleet.settings,
            self.process.clock,
            name=self.process.name,
            artifacts=SimArtifacts(self.fleet.files, self.process),
        )
        return self.scheduler.run()


class WorkerSlot(Slot):
    """An agent and its group."""

    agent: Agent
    launcher: SimLauncher

    def __init__(self, fleet: Fleet, name: str, models: tuple[str, ...], width: int) -> None:
        super().__init__(fleet, name)
        self._models = models
        self._width = width
        self.launcher = self._launcher()

    def _launcher(self) -> SimLauncher:
        process, witness = self.process, self.fleet.witness
        return SimLauncher(
            self.fleet.loop,
            process,
            self.fleet.seed,
            self._models,
            lambda run: witness.ran(run.job, run.epoch, process.name),
        )

    async def main(self) -> None:
        self.launcher = self._launcher()
        worker = self.name.removeprefix("worker-")
        others = tuple(OtherModel(model="dummy", serve_as=name) for name in self._models[1:])
        first = self._models[0]
        pool = Pool(model="dummy", serve_as=first, others=others, name=worker, width=self._width, limits=LIMITS)
        self.agent = Agent(
            self.bus,
            SimArtifacts(self.fleet.files, self.process),
            pool,
            self.fleet.settings,
            self.process.clock,
            worker=worker,
            incarnation=f"i{self.starts}",
            launcher=self.launcher,
            runtime_dir=self.fleet.folder / self.process.name,
        )
        await self.agent.run()

    def may_end_with(self, error: BaseException | None) -> bool:
        return isinstance(error, Superseded)


class Fleet:
    """All of it. ``close`` ends everything.

    Args:
        seed: draws everything that happens by chance.

    Attributes:
        witness: sees what happens and says what is broken; ``wishes``: what operators want, and whether that is kept.
    """

    def __init__(self, seed: str, *, schedulers: int = 2, gateways: int = 2) -> None:
        self.seed = seed
        self.settings = SETTINGS
        self.loop = SimLoop(seed)
        asyncio.set_event_loop(self.loop)
        self.broker = Broker(SimClock(self.loop, 0.0), BUCKETS)
        self.network = Network(self.loop, self.broker)
        self.witness = Witness(self.broker, self.loop.time)
        self.wishes = Wishes(self)
        self.files = Files()
        self.folder = Path(tempfile.mkdtemp(prefix="simulation-"))
        self.gateways: list[GatewaySlot] = []
        self.schedulers: list[SchedulerSlot] = []
        self.workers: list[WorkerSlot] = []
        self._keepers: list[asyncio.Task[None]] = []
        self.do(self._build(schedulers, gateways))

    async def _build(self, schedulers: int, gateways: int) -> None:
        self.gateways = [GatewaySlot(self, f"gateway-{n}") for n in range(gateways)]
        self.schedulers = [SchedulerSlot(self, f"scheduler-{n}") for n in range(schedulers)]
        self.workers = [WorkerSlot(self, f"worker-w{n}", *kind) for n, kind in enumerate(WORKERS)]
        self._keepers = [asyncio.ensure_future(slot.keep()) for slot in self.slots]

    @property
    def slots(self) -> list[Slot]:
        """Every process's place."""
        return [*self.gateways, *self.schedulers, *self.workers]

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Let the loop go on until this is done, and check what must hold."""
        found = self.loop.run_until_complete(work)
        self.check()
        return found

    def check(self) -> None:
        """What must hold at any moment.

        Raises:
            Broken, AssertionError: it does not.
        """
        self.witness.check()
        for slot in self.schedulers:
            if slot.scheduler is not None and slot.process.alive:
                check(slot.scheduler.state)
        assert not self.loop.surprises, self.loop.surprises[0]

    async def until(self, probe: Callable[[], bool], bound_s: float) -> bool:
        """Wait until it is so; whether it came to be within the bound."""
        end = self.loop.time() + bound_s
        while not probe():
            if self.loop.time() >= end:
                return False
            await asyncio.sleep(0.5)
            self.check()
        return True

    def close(self) -> None:
        """End everything and leave nothing behind."""
        try:
            self.loop.run_until_complete(self._end())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _end(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        for slot in self.slots:
            slot.process.kill()
        for _ in range(3):
            await asyncio.sleep(1.0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
