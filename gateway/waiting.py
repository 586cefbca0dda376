"""Why a job waits, what is before it, when it may start and end: from what this gateway sees. The scheduler decides by
its own sums (see ``docs/scheduling.md``), so the place is what equal shares would give, and the estimate says how far
such estimates were off of late (see ``estimates``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec import Struct

from gateway.estimates import Estimates, Scores, Starts
from gateway.fleet import GOOD_FOR_S, Fleet
from gateway.index import QueueIndex
from gateway.memory import has_room, too_large
from gateway.operators import Operators
from gateway.resolve import fits
from gateway.schema.jobs import QueueView
from shared.clock import Clock
from shared.fit import largest_volume, part, volume
from shared.messages import TERMINAL, JobRecord, Parallel, Progress, Reason, State, WorkerLease
from shared.pace import Kind, kind_of
from shared.settings import Settings

#: Returns to the queue after which a job does not rest.
_SETBACKS = frozenset(
    {
        Reason.WORKER_LOST,
        Reason.WORKER_DRAINING,
        Reason.WORKER_BUSY,
        Reason.CANNOT_SERVE,
        Reason.NO_RESPONSE,
        Reason.CANCEL_REQUESTED,
    }
)
_MAX_REST_S = 60.0
_SAMPLE_EVERY_S = 0.25
_SAMPLES_KEPT = 2_000
#: How long the starts that were computed for a queue are gone by.
_STARTS_S = 0.5
_SHAPES_REMEMBERED = 256


class Guess(Struct, frozen=True, gc=False):
    """What was estimated for a job at some moment: in how many seconds it starts and ends, and how long one takes."""

    at: float
    eta_s: float
    end_s: float
    each_s: float


class _Errors:
    """How far estimates of one model were off."""

    def __init__(self) -> None:
        self.start = Scores()
        self.end = Scores()


@dataclass(frozen=True, slots=True)
class _Able:
    """The workers that could take jobs of one shape; ``why`` and ``message`` if none can. Where they want memory, those
    that offer the layout."""

    until: float
    generation: tuple[int, int]
    workers: tuple[str, ...]
    leases: list[WorkerLease]
    #: How many of them are of each kind.
    kinds: Counter[Kind]
    why: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Computed:
    at: float
    #: Seconds of one job; None where that is not known, and then not when any starts either.
    each_s: float | None = None
    starts: Starts | None = None


class Waiting:
    """Answers for queued jobs.

    Args:
        progress_of: how far a job's present attempt is.
        waited_s: seconds since that record was written, by the broker's clock.
    """

    def __init__(
        self,
        fleet: Fleet,
        queue: QueueIndex,
        operators: Operators,
        settings: Settings,
        clock: Clock,
        progress_of: Callable[[JobRecord], Progress | None],
        waited_s: Callable[[str], float],
    ) -> None:
        self._fleet = fleet
        self._queue = queue
        self._operators = operators
        self._settings = settings
        self._clock = clock
        self._progress_of = progress_of
        self._waited_s = waited_s
        self._estimates = Estimates()
        self._guesses: dict[str, Guess] = {}
        self._sampled = 0.0
        self._errors: defaultdict[str, _Errors] = defaultdict(_Errors)
        self._starts: dict[tuple[str, tuple[str, ...]], _Computed] = {}
        self._shapes: dict[tuple[str, Parallel, float], _Able] = {}

    def view(self, record: JobRecord) -> QueueView:
        """A queued job's place among those of its model, why it waits there, and when a worker may take it.

        The estimate is the work before it (what runs, by its own progress where it tells, and what is queued, by
        measured times) spread over the workers that can take the job; None where nothing has been measured, or where no
        work that is done brings the job nearer.
        """
        ahead = self.ahead(record)
        able = self._able(record)
        why, message = self._why(record)
        if not why:
            why, message = able.why, able.message
            if why == "memory":
                message = too_large(self._fleet.models[record.request.model], record.request, able.leases)
        if not why:
            why, message = ("next", "") if ahead == 0 else ("jobs_ahead", f"{ahead} of this model go before it")
        guess = self._guess(record, ahead, able) if why in ("next", "jobs_ahead") else None
        if guess is None:
            return QueueView(position=ahead + 1, eta_s=None, why=why, message=message)
        errors = self._errors[record.request.model]
        return QueueView(
            position=ahead + 1,
            eta_s=round(guess.eta_s, 1),
            eta_error_s=_rounded(errors.start.error_s(guess.eta_s, guess.each_s)),
            end_s=round(guess.end_s, 1),
            end_error_s=_rounded(errors.end.error_s(guess.end_s, guess.each_s)),
            why=why,
            message=message,
        )

    def ahead(self, record: JobRecord) -> int:
        """Jobs of its model that go before it if every tenant has its share from now on: of its own tenant those of
        smaller rank, of each other one as many as its weight gives it meanwhile."""
        model, tenant = record.request.model, record.tenant
        own = self._queue.ahead(record)
        counts: Mapping[str, int] = self._queue.tenants(model)
        if len(counts) <= 1:
            return own
        weight = self._operators.limits(tenant).weight
        others = (
            min(count, int((own + 1) * self._operators.limits(other).weight / weight))
            for other, count in counts.items()
            if other != tenant
        )
        return own + sum(others)

    def _able(self, record: JobRecord) -> _Able:
        """The workers that could take the job. Remembered for its shape: there may be hundreds of workers."""
        request, fleet = record.request, self._fleet
        card = fleet.models.get(request.model)
        share = 1.0 if card is None else part(volume(request), largest_volume(card))
        shape = request.model, request.parallel, share
        now, generation = self._clock.monotonic(), (fleet.generation, self._operators.generation)
        known = self._shapes.get(shape)
        if known is not None and known.generation == generation and now < known.until:
            return known
        serving = fleet.serving(request.model)
        offering = [lease for lease in serving if _offers(request.parallel, lease)]
        roomy = [lease for lease in offering if has_room(card, request, lease)]
        leases = [lease for lease in roomy if self._operators.takes_jobs(lease.worker)]
        why, message = self._unable(record, serving, offering, roomy, leases)
        made = _Able(
            until=now + GOOD_FOR_S,
            generation=generation,
            workers=tuple(lease.worker for lease in leases),
            leases=offering if why == "memory" else leases,
            kinds=Counter(kind_of(lease) for lease in leases),
            why=why,
            message=message,
        )
        if len(self._shapes) > _SHAPES_REMEMBERED:
            self._shapes.clear()
        self._shapes[shape] = made
        return made

    def _unable(
        self,
        record: JobRecord,
        serving: list[WorkerLease],
        offering: list[WorkerLease],
        roomy: list[WorkerLease],
        able: list[WorkerLease],
    ) -> tuple[str, str]:
        """What keeps every worker from taking the job, if something does."""
        request = record.request
        if not serving:
            if self._fleet.starting(request.model):
                return "worker_starting", "a worker is loading"
            return "no_worker", f"no worker serves {request.model}"
        if not offering:
            return "layout_unavailable", "no worker offers the layout that was asked for"
        if not roomy:
            return "memory", ""
        if not able:
            all_of_them = f"every worker that serves {request.model}"
            if all(self._operators.drained(lease.worker) for lease in roomy):
                return "workers_drained", f"{all_of_them} is drained"
            return "workers_quarantined", f"{all_of_them} has failed too often or is drained"
        return "", ""

    def _why(self, record: JobRecord) -> tuple[str, str]:
        """What holds the job back that is not its shape, if something does."""
        operators = self._operators
        if operators.queue.held:
            return "held", operators.queue.reason or "the queue is held"
        limit = operators.limits(record.tenant).max_running
        if limit is not None and self._queue.running[record.tenant] >= limit:
            return "tenant_limit", f"at most {limit} jobs may be at workers at once (max_running)"
        rest_s = self._rest_s(record)
        if rest_s > 0:
            return "backing_off", f"tried again in {rest_s:.0f} s, after {record.attempts} failed attempts"
        return "", ""

    def _rest_s(self, record: JobRecord) -> float:
        if not record.attempts or not record.transitions or record.transitions[-1].reason in _SETBACKS:
            return 0.0
        rest_s = min(self._settings.backoff_s * 2.0 ** min(record.attempts - 1, 32), _MAX_REST_S)
        return rest_s - self._waited_s(record.id)

    # --- when --------------------------------------------------------------------------------------------------------

    def _guess(self, record: JobRecord, ahead: int, able: _Able) -> Guess | None:
        now, model = self._clock.monotonic(), record.request.model
        key = model, able.workers
        known = self._starts.get(key)
        if known is None or now - known.at >= _STARTS_S:
            if len(self._starts) > 256:
                self._starts.clear()
            known = self._starts[key] = self._compute(model, able.leases, now)
        if known.each_s is None or known.starts is None:
            return None
        workers, all_s = 0, 0.0
        for kind, count in able.kinds.items():
            seconds = self._estimates.takes_s(record, kind)
            if seconds is not None:
                workers, all_s = workers + count, all_s + seconds * count
        takes_s = all_s / workers if workers else known.each_s
        eta_s = max(0.0, known.starts.at(ahead) - (now - known.at))
        return Guess(at=now, eta_s=eta_s, end_s=eta_s + takes_s, each_s=known.each_s)

    def _compute(self, model: str, able: list[WorkerLease], now: float) -> _Computed:
        estimates, slots, times = self._estimates, list[tuple[float, float]](), list[float]()
        for lease in able:
            kind = kind_of(lease)
            for name, step_s in lease.step_s.items():
                estimates.paces.told(name, kind, step_s)
            each_s = estimates.each_s(model, kind)
            if each_s is None:
                continue
            times.append(each_s)
            load_s = 0.0
            if lease.loaded_models and model not in lease.loaded_models:
                load_s = lease.load_s.get(model, 0.0)
            left = sorted(self._left_s(job, left_s) for job, left_s in estimates.left_s(lease.worker, kind, now))
            busy = left[: lease.capacity]
            slots += [(left_s + load_s, each_s) for left_s in busy]
            slots += [(load_s, each_s)] * (lease.capacity - len(busy))
        if not slots:
            return _Computed(now)
        return _Computed(now, sum(times) / len(times), Starts(slots))

    def _left_s(self, record: JobRecord, left_s: float) -> float:
        progress = self._progress_of(record)
        return left_s if progress is None or progress.eta_s is None else progress.eta_s

    # --- what is seen ------------------------------------------------------------------------------------------------

    def changed(self, record: JobRecord) -> None:
        """A record was seen: some estimates are remembered, and compared with what came."""
        now, model = self._clock.monotonic(), record.request.model
        lease = self._fleet.lease(record.worker) if record.worker is not None else None
        kind = None if lease is None else kind_of(lease)
        running = record.state is not State.QUEUED
        self._estimates.seen(record, now - self._waited_s(record.id) if running else now, kind)
        guess = self._guesses.get(record.id)
        if record.state is State.QUEUED:
            if guess is None and now - self._sampled >= _SAMPLE_EVERY_S:
                self._sampled = now
                self.remember(record)
        elif guess is None:
            return
        elif record.state in TERMINAL:
            del self._guesses[record.id]
            if record.state is State.SUCCEEDED and record.epoch == 1:
                self._errors[model].end.add(guess.end_s, now - guess.at, guess.each_s)
        elif record.state is State.ASSIGNED and record.epoch == 1:
            self._errors[model].start.add(guess.eta_s, now - guess.at, guess.each_s)

    def remember(self, record: JobRecord) -> Guess | None:
        """Estimate when a queued job starts, and compare it with what comes."""
        able = self._able(record)
        guess = None if able.why or self._why(record)[0] else self._guess(record, self.ahead(record), able)
        if guess is not None and len(self._guesses) < _SAMPLES_KEPT:
            self._guesses[record.id] = guess
        return guess

    def forget(self, job: str) -> None:
        """The job is not in the view any more."""
        self._estimates.forget(job)
        self._guesses.pop(job, None)


def _offers(asked: Parallel, lease: WorkerLease) -> bool:
    return asked == Parallel() or any(fits(asked, layout) for layout in lease.layouts)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
