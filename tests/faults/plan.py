"""What a chaos run does to a fleet and asks of it, drawn from a seed before anything starts, so that it can be
replayed.

Pure. Times are in seconds since the start of the run; what the machine makes of them differs from run to run, but the
order, the targets and the jobs do not.
"""

from __future__ import annotations

import random
from enum import StrEnum
from itertools import cycle, islice

from msgspec import Struct


class Target(StrEnum):
    """What is hit."""

    GATEWAY = "gateway"
    SCHEDULER = "scheduler"
    AGENT = "agent"
    RANK = "rank"
    NATS = "nats"


class Blow(StrEnum):
    """What is done to it. ``KILL`` and ``STOP`` are SIGKILL and SIGSTOP, the others cut its network."""

    KILL = "kill"
    STOP = "stop"
    BLACK_HOLE = "black hole"
    RESET = "reset"


class Fault(Struct, frozen=True, kw_only=True):
    """One blow. ``which`` chooses among the target's processes (modulo their number); it is put right (started again,
    continued, healed) after ``lasts_s``."""

    at_s: float
    target: Target
    blow: Blow
    which: int
    lasts_s: float


#: Beside the kills: one of these for every third of them.
_LESSER = (
    (Target.AGENT, Blow.STOP),
    (Target.AGENT, Blow.BLACK_HOLE),
    (Target.SCHEDULER, Blow.STOP),
    (Target.GATEWAY, Blow.RESET),
    (Target.NATS, Blow.STOP),
    (Target.RANK, Blow.STOP),
    (Target.SCHEDULER, Blow.BLACK_HOLE),
    (Target.GATEWAY, Blow.STOP),
    (Target.AGENT, Blow.RESET),
    (Target.GATEWAY, Blow.BLACK_HOLE),
    (Target.SCHEDULER, Blow.RESET),
)


def faults(seed: int, kills: int, seconds: float) -> tuple[Fault, ...]:
    """``kills`` SIGKILLs, as many of each target as can be, and a third as many lesser blows, in random order, spread
    over the time."""
    draw = random.Random(f"faults {seed}")
    blows = [(target, Blow.KILL) for target in islice(cycle(Target), kills)]
    blows += islice(cycle(_LESSER), kills // 3)
    draw.shuffle(blows)
    width = seconds / max(1, len(blows))
    return tuple(
        Fault(
            at_s=round((number + draw.random()) * width, 3),
            target=target,
            blow=blow,
            which=draw.randrange(1_000_000),
            # Most are over before a lease is (2 s in these runs); one in four is not.
            lasts_s=round(draw.uniform(0.1, 1.0) if draw.random() < 0.75 else draw.uniform(3.0, 6.0), 3),
        )
        for number, (target, blow) in enumerate(blows)
    )


class Job(Struct, frozen=True, kw_only=True):
    """One job of the load.

    Attributes:
        key: its Idempotency-Key.
        body: of ``POST /v1/jobs``.
        may_fail: it is made to fail; the others end as succeeded unless they are cancelled or killed too often.
        cancel_after_s: from its acceptance; None lets it run.
        watched: its stream is read to the end.
        sent_twice: once accepted, it is submitted again.
        reprioritised: the priority that it is given as soon as it is accepted, if it still waits.
        retried: once it has ended, a new job is made of it.
        deleted: once it has ended, it is deleted.
    """

    at_s: float
    key: str
    body: dict[str, object]
    may_fail: bool
    cancel_after_s: float | None
    watched: bool
    sent_twice: bool
    reprioritised: int | None = None
    retried: bool = False
    deleted: bool = False


#: What a job that is to fail makes the dummy engine do; see ``workers.engine.dummy``.
_FAILURES: tuple[dict[str, object], ...] = (
    {"fail": "engine_error"},
    {"fail": "device_error", "poison": 1},
    {"refuse": "input_rejected"},
    {"exit_at": 1},
    {"kill_at": 1},
    {"hang_at": 1},
)


def jobs(seed: int, count: int, seconds: float) -> tuple[Job, ...]:
    """The load: most jobs take a fraction of a second; one in ten is cancelled and one in twenty watched, those take a
    second or two, so that something happens meanwhile; one in fifty fails, kills its group or hangs. One in ten is
    reprioritised, one in twenty retried when it has ended, and one in twenty deleted then."""
    draw = random.Random(f"jobs {seed}")
    return tuple(_job(draw, f"{seed}-{number}", number * seconds / count) for number in range(count))


def _job(draw: random.Random, key: str, at_s: float) -> Job:
    cancelled, watched = draw.random() < 0.1, draw.random() < 0.05
    dummy: dict[str, object] = {"steps": draw.randint(1, 12), "step_ms": draw.choice((1, 5, 10, 20, 60))}
    if cancelled or watched:
        dummy = {"steps": draw.randint(10, 20), "step_ms": 100}
    may_fail = draw.random() < 0.02
    if may_fail:
        dummy |= draw.choice(_FAILURES)
    afterwards = draw.random()
    return Job(
        at_s=round(at_s, 3),
        key=key,
        body={
            "prompt": f"chaos {key}",
            "model": "dummy",
            "priority": draw.randint(0, 9),
            # An innocent job may be hit many times in such a run, a guilty one need not be tried often.
            "max_attempts": 2 if may_fail else 15,
            "dummy": dummy,
        },
        may_fail=may_fail,
        cancel_after_s=round(draw.uniform(0.0, 1.5), 3) if cancelled else None,
        watched=watched,
        sent_twice=draw.random() < 0.05,
        reprioritised=draw.randint(0, 9) if draw.random() < 0.1 else None,
        retried=afterwards < 0.05,
        # Not those that are watched: their stream would have to end twice.
        deleted=afterwards > 0.95 and not watched,
    )
