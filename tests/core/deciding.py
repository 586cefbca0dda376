"""Short words for the core's tests: events with their usual values, and a state that is ready."""

from __future__ import annotations

from msgspec.structs import replace

from scheduler.commands import Command, Move, SendAssign, ToAssigned, ToQueued, WriteRecord
from scheduler.decide import decide
from scheduler.events import CaughtUp, Event, JobSeen, LeaseSeen, Stream, Summary, Tick, Wish, WriteWon
from scheduler.invariants import check
from scheduler.policy import Times
from scheduler.state import CoreState
from shared.messages import Held, Layout, Parallel, Result, State, Succeeded, WorkerLease, WorkerState

LOST = ToQueued(reason="worker_lost", message="the worker was lost")


class Core:
    """A core whose invariants are checked after every event. ``now`` moves by ``after``."""

    def __init__(self, times: Times | None = None, *, ready: bool = True) -> None:
        self.state = CoreState(times or Times())
        self.now = 1000.0
        self.beats: dict[str, int] = {}
        if ready:
            self.catch_up()

    def catch_up(self) -> list[Command]:
        commands: list[Command] = []
        for stream in Stream:
            commands += self.tell(CaughtUp(now=self.now, stream=stream))
        return commands

    def tell(self, event: Event) -> list[Command]:
        commands = decide(self.state, event)
        check(self.state)
        return commands

    def after(self, seconds: float, contact_s: float | None = None, step: float = 1.0) -> list[Command]:
        """Let time pass in ticks; contact with the broker has always been there unless said otherwise."""
        commands: list[Command] = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            contact = self.now if contact_s is None else contact_s
            commands += self.tell(Tick(now=self.now, contact_s=contact))
        return commands

    def seen(self, job: Summary) -> list[Command]:
        return self.tell(JobSeen(now=self.now, job=job))

    def won(self, job: Summary) -> list[Command]:
        return self.tell(WriteWon(now=self.now, job=job))

    def lease(self, worker: str = "w1", incarnation: str = "", **fields: object) -> list[Command]:
        """The worker's next renewal."""
        return self.tell(LeaseSeen(now=self.now, lease=self.renewal(worker, incarnation, **fields)))

    def renewal(self, worker: str = "w1", incarnation: str = "", **fields: object) -> WorkerLease:
        self.beats[worker] = self.beats.get(worker, 0) + 1
        lease = WorkerLease(
            worker=worker,
            incarnation=incarnation or f"{worker}-a",
            beat=self.beats[worker],
            lease_s=6.0,
            state=WorkerState.IDLE,
            models=("m",),
            layouts=(Layout(),),
        )
        return replace(lease, **fields)


def job(name: str = "j", revision: int = 1, state: State = State.QUEUED, **fields: object) -> Summary:
    """A summary; ``birth`` grows with the name's length and the revision unless given."""
    plain = Summary(
        id=name,
        revision=revision,
        state=state,
        epoch=0 if state is State.QUEUED else 1,
        wish=Wish(model="m"),
        tenant="default",
        priority=5,
        birth=float(revision),
        age_s=0.0,
        run_timeout_s=3600.0,
        worker=None if state is State.QUEUED else "w1",
        incarnation=None if state is State.QUEUED else "w1-a",
        started=state in (State.RUNNING, State.CANCELLING),
    )
    return replace(plain, **fields)


def write(name: str, move: Move, revision: int = 1, since_s: float = 0.0) -> WriteRecord:
    return WriteRecord(job=name, revision=revision, since_s=since_s, move=move)


def to(worker: str, incarnation: str = "") -> ToAssigned:
    return ToAssigned(worker=worker, incarnation=incarnation or f"{worker}-a")


def send(name: str, revision: int, epoch: int = 1, worker: str = "w1", decided: float | None = None) -> SendAssign:
    return SendAssign(
        job=name, epoch=epoch, revision=revision, worker=worker, incarnation=f"{worker}-a", decided=decided
    )


def wide(cfg_size: int | None = None, ulysses_size: int | None = None) -> Wish:
    return Wish(model="m", parallel=Parallel(cfg_size=cfg_size, ulysses_size=ulysses_size))


def holds(*held: tuple[str, int]) -> tuple[Held, ...]:
    return tuple(Held(job=name, epoch=epoch) for name, epoch in held)


def moves(commands: list[Command]) -> list[tuple[str, int, Move]]:
    """The writes among them, whenever they were decided."""
    return [(command.job, command.revision, command.move) for command in commands if isinstance(command, WriteRecord)]


def result(name: str = "j", epoch: int = 1, worker: str = "w1") -> Result:
    return Result(job=name, epoch=epoch, worker=worker, incarnation=f"{worker}-a", outcome=Succeeded(outputs=()))


def running(core: Core, name: str = "j") -> None:
    """That job runs at w1, and w1 says so."""
    core.lease(held=holds((name, 1)))
    assert core.seen(job(name, revision=3, state=State.RUNNING)) == []


def assigned(core: Core) -> None:
    """The job was given to w1 by this core, whose request is under way."""
    core.lease()
    assert core.seen(job()) == [write("j", to("w1"))]
    assert core.won(job(revision=2, state=State.ASSIGNED)) == [send("j", 2, decided=core.now)]
