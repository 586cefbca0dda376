"""What can go wrong, and what clients do: one function per kind of thing, each drawn from a ``Random``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from deploy.history.check import Submit
from gateway.problems import Problem
from gateway.schema.requests import ParallelBody, SubmitBody
from shared.errors import BusError, InvalidRequest
from shared.messages import TERMINAL, State
from tests.simulation.fleet import Fleet, GatewaySlot, Slot
from tests.simulation.network import CALM, Weather
from tests.simulation.operators import Operating
from tests.simulation.process import Crashed

TENANTS = ("ada", "ben", "cyd")

#: What jobs pretend, and how often.
_PRETENCES: tuple[tuple[int, dict[str, float | str]], ...] = (
    (20, {}),
    (2, {"fail": "engine_error", "fail_at": 2}),
    (1, {"fail": "out_of_memory", "poison": 1}),
    (1, {"refuse": "input_rejected"}),
    (1, {"kill_at": 2}),
    (1, {"exit_at": 1}),
    (1, {"hang_at": 2}),
    (1, {"deaf": 1}),
)
#: Each of them once.
PRETENCES = tuple(pretence for _, pretence in _PRETENCES)

_WIDTHS = (None, None, None, 1, 2)


class Chaos(Operating):
    """Does things to a fleet and remembers what has to be undone.

    Attributes:
        submitted: how many submits were begun.
    """

    def __init__(self, fleet: Fleet, random: Random) -> None:
        super().__init__()
        self.fleet = fleet
        self.random = random
        self.submitted = 0
        self._clients: set[asyncio.Task[None]] = set()

    tenants = TENANTS

    # --- clients -----------------------------------------------------------------------------------------------------

    def submit(self, pretence: dict[str, float | str] | None = None) -> None:
        """A client submits a job, and asks again under its key until it is told that it was taken."""
        random = self.random
        self.submitted += 1
        if pretence is None:
            weights = [weight for weight, _ in _PRETENCES]
            (pretence,) = random.choices([kind for _, kind in _PRETENCES], weights)
        model = random.choice(("dummy", "dummy", "dummy", "dummy-b"))
        body = SubmitBody(
            prompt=f"job {self.submitted}",
            model=model,
            seed=self.submitted,
            priority=random.randrange(10),
            n=random.choice((1, 1, 1, 2)),
            parallel=ParallelBody(
                ulysses_size=random.choice((None, None, None, 1, 2) if model == "dummy" else (None,))
            ),
            start_deadline_s=random.choice((None, None, None, 3.0, 30.0, 300.0)),
            run_timeout_s=random.choice((5.0, 60.0)),
            max_attempts=random.choice((1, 3, 3, 5)),
            dummy={
                **pretence,
                "steps": random.randint(1, 6),
                "step_ms": random.choice((5, 50, 400)),
                "output_bytes": 8,
            },
        )
        key, tenant = f"key-{self.submitted}", random.choice(TENANTS)
        for _ in range(2 if random.random() < 0.1 else 1):
            self._client(lambda gateway: self._submit(gateway, tenant, key, body))

    async def _submit(self, gateway: GatewaySlot, tenant: str, key: str, body: SubmitBody) -> None:
        record = await gateway.submit(tenant, key, body)
        self.fleet.witness.note(f"accepted {record.id}")
        self.fleet.witness.accepted.setdefault(record.id, Submit(id=record.id, key=key, tenant=tenant))

    def cancel(self) -> None:
        """A client cancels a job."""
        job = self._some_job()
        if job is not None:
            self._client(lambda gateway: self._cancel(gateway, job))

    async def _cancel(self, gateway: GatewaySlot, job: str) -> None:
        tenant = self.fleet.witness.records[job].tenant
        record = await gateway.process.ask(gateway.changes.cancel(job, tenant))
        if record.state in (State.CANCELLED, State.CANCELLING):
            self.fleet.witness.note(f"cancel answered {job}")
            now = self.fleet.witness.records[job]
            if now.state in TERMINAL and now.state is not State.CANCELLED:
                self.fleet.witness.breaks(f"{job}: its cancel was answered with {record.state}, it is {now.state}")
            self.fleet.witness.cancelled.add(job)

    def reprioritise(self) -> None:
        """A client changes a job's priority."""
        job, priority = self._some_job(), self.random.randrange(10)
        if job is not None:
            tenant = self.fleet.witness.records[job].tenant
            self._client(lambda gateway: gateway.process.ask(gateway.changes.reprioritise(job, tenant, priority)))

    def retry(self) -> None:
        """A client makes a new job of one that has ended."""
        job = self._some_ended()
        if job is not None:
            self.submitted += 1
            tenant, key = self.fleet.witness.records[job].tenant, f"key-{self.submitted}"
            self._client(lambda gateway: self._retry(gateway, job, tenant, key))

    async def _retry(self, gateway: GatewaySlot, job: str, tenant: str, key: str) -> None:
        record = await gateway.process.ask(gateway.submissions.retry(job, tenant, key))
        assert record.retry_of == job
        self.fleet.witness.note(f"accepted {record.id}")
        self.fleet.witness.accepted.setdefault(record.id, Submit(id=record.id, key=key, tenant=tenant))

    def delete(self) -> None:
        """A client deletes a job that has ended."""
        job = self._some_ended()
        if job is not None:
            tenant = self.fleet.witness.records[job].tenant
            self._client(lambda gateway: gateway.process.ask(gateway.changes.delete(job, tenant)))

    def _some_ended(self) -> str | None:
        ended = [name for name, record in self.fleet.witness.records.items() if record.state in TERMINAL]
        ended = [name for name in ended if name not in self.fleet.witness.deleted]
        return self.random.choice(ended) if ended else None

    def _some_job(self) -> str | None:
        names = [name for name in self.fleet.witness.records if name not in self.fleet.witness.deleted]
        return self.random.choice(names[-12:]) if names else None

    def _client(self, ask: Callable[[GatewaySlot], Any]) -> None:
        random = Random(self.random.random())

        async def persist() -> None:
            while True:
                gateway = random.choice(self.fleet.gateways)
                try:
                    async with asyncio.timeout(20.0):
                        await ask(gateway)
                    return
                except Problem as problem:
                    if problem.status not in (429, 503):
                        self.fleet.witness.note(f"answered {problem.status}")
                        return
                except InvalidRequest as error:
                    if error.field != "model":  # until a first pool has announced it
                        self.fleet.witness.note(f"refused {error.field}")
                        return
                except (BusError, Crashed, TimeoutError, AttributeError):
                    pass  # answered 503, died, did not answer, or does not listen yet
                await asyncio.sleep(random.uniform(0.1, 3.0))

        task = asyncio.ensure_future(persist())
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    @property
    def waiting(self) -> int:
        """Clients that have no answer yet."""
        return len(self._clients)

    # --- faults ------------------------------------------------------------------------------------------------------

    def _some(self) -> Slot:
        return self.random.choice(self.fleet.slots)

    def kill(self) -> None:
        """``kill -9`` of some process."""
        self._some().process.kill()

    def kill_at_a_write(self) -> None:
        """Some process dies at one of its next writes, just before or just after it."""
        self._some().bus.crash_in = (self.random.randrange(6), self.random.random() < 0.5)

    def kill_group(self) -> None:
        """The group of some worker dies."""
        last = self.random.choice(self.fleet.workers).launcher.last
        if last is not None:
            last.process.kill()

    def slow_group(self) -> None:
        """The group of some worker becomes slow, or as it was."""
        last = self.random.choice(self.fleet.workers).launcher.last
        if last is not None:
            last.slow = self.random.choice((1.0, 1.0, 5.0, 40.0))

    def stop_worker(self) -> None:
        """SIGTERM to some agent."""
        slot = self.random.choice(self.fleet.workers)
        if slot.process.alive and hasattr(slot, "agent"):
            slot.process.spawn(_call(slot.agent.stop))

    def pause(self) -> None:
        """SIGSTOP to some process, SIGCONT after a while."""
        process = self._some().process
        process.pause()
        self.fleet.loop.call_later(self.random.choice((0.5, 3.0, 10.0, 25.0)), process.resume)

    def cut(self) -> None:
        """Some process loses the broker for a while."""
        name = self._some().process.name
        self.fleet.broker.cut(name)
        self.fleet.loop.call_later(self.random.choice((0.3, 3.0, 10.0, 25.0)), self.fleet.broker.mend, name)

    def restart_broker(self) -> None:
        """The broker is killed, and started again after a while."""
        if self.fleet.broker.up:
            self.fleet.broker.stop()
            self.fleet.loop.call_later(self.random.choice((0.1, 2.0, 12.0)), self.fleet.broker.start)

    def pause_broker(self) -> None:
        """SIGSTOP to the broker, SIGCONT after a while."""
        if self.fleet.broker.up and not self.fleet.broker.paused:
            self.fleet.broker.pause()
            self.fleet.loop.call_later(self.random.choice((0.5, 3.0, 9.0)), self.fleet.broker.resume)

    def turn_weather(self) -> None:
        """The network becomes better or worse."""
        random = self.random
        kinds = (
            CALM,
            Weather(slow=0.2, slow_s=0.5, lag=0.2, lag_s=1.0),
            Weather(delay_s=0.05, refuse=0.05, lose=0.05, repeat=0.1),
            Weather(delay_s=0.01, slow=0.05, slow_s=3.0, refuse=0.1, lose=0.1, late=0.1, repeat=0.3, lag=0.3),
        )
        self.fleet.network.weather = random.choice(kinds)
        self.fleet.broker.coalesce = random.random() < 0.3

    def jump_wall_clock(self) -> None:
        """Somebody sets some machine's clock."""
        self._some().process.clock.ahead += self.random.choice((-86400.0, -5.0, 5.0, 3600.0))

    def jump_broker_clock(self) -> None:
        """Somebody sets the clock of the broker's machine."""
        self.fleet.broker.jump(self.random.choice((-600.0, -5.0, 5.0, 600.0)))

    def fail_store(self) -> None:
        """The artifact store does not answer for a while."""
        self.fleet.files.failing = True
        self.fleet.loop.call_later(self.random.choice((0.5, 5.0)), self.mend_store)

    def mend_store(self) -> None:
        """It answers again."""
        self.fleet.files.failing = False

    def without_schedulers(self) -> None:
        """All schedulers are gone for a while."""
        for slot in self.fleet.schedulers:
            slot.shut()
        self.fleet.loop.call_later(self.random.choice((5.0, 30.0)), self._let_schedulers)

    def _let_schedulers(self) -> None:
        for slot in self.fleet.schedulers:
            slot.reopen()

    def heal(self) -> None:
        """Everything works from now on."""
        self.fleet.network.weather = replace(CALM)
        self.fleet.broker.coalesce = False
        if not self.fleet.broker.up:
            self.fleet.broker.start()
        if self.fleet.broker.paused:
            self.fleet.broker.resume()
        self.mend_store()
        for slot in self.fleet.slots:
            slot.reopen()
            slot.bus.crash_in = None
            slot.process.resume()
            self.fleet.broker.mend(slot.process.name)
        for worker in self.fleet.workers:
            worker.launcher.fail_next = 0
            if worker.launcher.last is not None:
                worker.launcher.last.slow = 1.0


async def _call(what: Callable[[], None]) -> None:
    what()
