"""One run: clients and faults for so many steps, then everything heals and every promise is checked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from deploy.history.check import Snapshot, check
from shared.messages import TERMINAL, CancelOrder, JobRecord, WorkerLease, decode
from shared.topology import ARCHIVE, DELETED, JOBS, ORDERS, RESULTS, WORKERS
from tests.simulation.faults import Chaos
from tests.simulation.fleet import RETAINED, Fleet
from tests.simulation.process import EPOCH
from tests.simulation.quiet import Quiet
from tests.simulation.witness import Broken
from tests.support.memory_bus.stream import Stream

STEPS = 60
#: Seconds of made-up time within which every job has ended after everything healed: every open job may take all of its
#: attempts, each until its run timeout, on the one worker that fits.
LIVENESS_S = 3600.0
#: Seconds until nothing is left of leases of workers that are gone, and of late writes.
REST_S = 90.0


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        trace: digest of all that happened.
        broken: the promise that does not hold; empty if all do.
        deleted: jobs that left the queue's bucket.
    """

    seed: int
    steps: int
    trace: str
    broken: str
    jobs: int
    writes: int
    seconds: float
    states: dict[str, int]
    mix: str
    deleted: int

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        text = f"seed {self.seed}: {self.jobs} jobs ({ends}), {self.writes} writes, {self.seconds:.0f} s"
        if not self.broken:
            return f"{text}, {self.trace[:12]}"
        again = f"python -m tests.simulation --seed {self.seed} --steps {self.steps} --mix {self.mix}"
        return f"{text}\n{self.broken}\nreplay: {again}"


def ends(chaos: Chaos) -> list[tuple[int, Callable[[], None]]]:
    """Mostly what becomes of jobs that have ended: deletions race the archive, retention and deaths at any write."""
    return [
        (24, chaos.submit),
        (24, chaos.delete),
        (8, chaos.retry),
        (4, chaos.cancel),
        (16, chaos.kill_at_a_write),
        (4, chaos.kill),
        (3, chaos.cut),
        (3, chaos.turn_weather),
        (2, chaos.restart_broker),
        (2, chaos.fail_store),
        (1, chaos.without_schedulers),
    ]


def everything(chaos: Chaos) -> list[tuple[int, Callable[[], None]]]:
    """Everything that may happen in a step, with its weight."""
    return [
        (40, chaos.submit),
        (8, chaos.cancel),
        (4, chaos.reprioritise),
        (2, chaos.delete),
        (2, chaos.retry),
        (8, chaos.kill),
        (10, chaos.kill_at_a_write),
        (3, chaos.kill_group),
        (4, chaos.slow_group),
        (2, chaos.stop_worker),
        (5, chaos.pause),
        (5, chaos.cut),
        (3, chaos.restart_broker),
        (2, chaos.pause_broker),
        (6, chaos.turn_weather),
        (2, chaos.jump_wall_clock),
        (1, chaos.jump_broker_clock),
        (2, chaos.fail_store),
        (1, chaos.without_schedulers),
        (2, chaos.hold),
        (2, chaos.release),
        (3, chaos.drain),
        (4, chaos.resume),
        (5, chaos.limit),
    ]


MIXES = {"all": everything, "ends": ends}


def simulate(seed: int, steps: int = STEPS, lines: list[str] | None = None, mix: str = "all") -> Outcome:
    """Run that seed.

    Args:
        lines: takes what happens, a line each.
        mix: of ``MIXES``.
    """
    with Quiet() as quiet:
        fleet = Fleet(str(seed))
        fleet.witness.lines = lines
        quiet.witness = fleet.witness
        broken = ""
        try:
            fleet.do(_run(fleet, Random(f"{seed}/chaos"), steps, MIXES[mix]))
        except AssertionError as error:
            broken = str(error) or repr(error)
        seconds = fleet.loop.time()
        try:
            fleet.close()
        except AssertionError as error:
            broken = broken or f"while ending: {error}"
    witness = fleet.witness
    states: dict[str, int] = {}
    for record in witness.records.values():
        states[record.state] = states.get(record.state, 0) + 1
    return Outcome(
        seed,
        steps,
        witness.trace,
        broken,
        len(witness.records),
        witness.writes,
        seconds,
        states,
        mix,
        len(witness.deleted),
    )


async def _run(
    fleet: Fleet, random: Random, steps: int, mix: Callable[[Chaos], list[tuple[int, Callable[[], None]]]]
) -> None:
    chaos = Chaos(fleet, random)
    await asyncio.sleep(random.uniform(0.0, 10.0))
    kinds = mix(chaos)
    weights = [weight for weight, _ in kinds]
    for _ in range(steps):
        ((_, act),) = random.choices(kinds, weights)
        fleet.witness.note(f"step {act.__name__}")
        act()
        await asyncio.sleep(random.expovariate(2.0))
        fleet.check()
    await settle(fleet, chaos)


async def settle(fleet: Fleet, chaos: Chaos) -> None:
    """Heal everything, wait until all is at rest, and check what is left behind.

    Raises:
        Broken: a promise does not hold.
    """
    chaos.heal()
    fleet.witness.note("healed")
    await chaos.want_something(chaos.submit)
    await chaos.want_nothing()
    records = fleet.witness.records

    def ended() -> bool:
        return chaos.waiting == 0 and all(record.state in TERMINAL for record in records.values())

    if not await fleet.until(ended, LIVENESS_S):
        left = [
            f"{name} {record.state} {record.epoch} {record.worker}"
            for name, record in records.items()
            if record.state not in TERMINAL
        ]
        raise Broken(f"{LIVENESS_S:g} s after everything healed {chaos.waiting} clients wait and these go on: {left}")
    await asyncio.sleep(REST_S)
    fleet.check()
    _check_rest(fleet)


def _records(stream: Stream) -> tuple[JobRecord, ...]:
    return tuple(decode(entry.value, JobRecord) for entry in stream.last.values() if entry.value is not None)


def _check_retained(snapshot: Snapshot) -> None:
    """No more is kept of a tenant than may be; what was deleted has neither record nor file."""
    kept = Counter(record.tenant for record in snapshot.archived)
    if any(count > RETAINED for count in kept.values()):
        raise Broken(f"more ended jobs are kept than {RETAINED} of each tenant: {dict(kept)}")
    if back := snapshot.deleted & snapshot.by_id().keys():
        raise Broken(f"deleted and still there: {sorted(back)}")
    if left := [stored.key for stored in snapshot.files if stored.key.split("/")[0] in snapshot.deleted]:
        raise Broken(f"files of deleted jobs are left: {left}")


def _check_rest(fleet: Fleet) -> None:
    witness, streams = fleet.witness, fleet.broker.streams
    now = fleet.broker.now()
    results = {key: now - entry.timestamp for key, entry in streams[RESULTS.name].last.items()}
    snapshot = Snapshot(
        records=_records(streams[JOBS.name]),
        archived=_records(streams[ARCHIVE.name]),
        deleted=frozenset(key.split(".")[-1] for key in streams[DELETED.name].last),
        results=results,
        files=fleet.files.all(),
        now=EPOCH + fleet.loop.time(),
    )
    for finding in check(snapshot, witness.accepted.values(), at_rest=True):
        if finding.broken:
            raise Broken(str(finding))
    _check_retained(snapshot)
    for kept in snapshot.by_id().values():
        if kept != witness.records[kept.id]:
            raise Broken(f"{kept.id} was kept as something else than it ended as")
    if results:
        raise Broken(f"results are left that nobody folds: {sorted(results)}")
    for key, entry in streams[WORKERS.name].last.items():
        if entry.value is not None and (held := decode(entry.value, WorkerLease).held):
            raise Broken(f"the lease of {key} still holds {held}")
    for key, entry in streams[ORDERS.name].last.items():
        if entry.value and not key.endswith(".drain"):
            order = decode(entry.value, CancelOrder)
            record = witness.records.get(order.job)
            if record is None or record.state not in TERMINAL:
                raise Broken(f"the order {key} is left of a job that goes on")
    for slot in fleet.schedulers:
        state = slot.scheduler.state if slot.scheduler is not None else None
        if state is not None and (state.jobs or state.results):
            raise Broken(f"{slot.process.name} still knows {list(state.jobs)} and {list(state.results.values())}")
