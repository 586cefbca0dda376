"""Why a job waits, what is before it, and when it may start: from what this gateway sees. The scheduler decides by its
own sums (see ``docs/scheduling.md``), so the place is what equal shares would give, and the estimate says how far
such estimates were off of late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.fleet import Fleet, mean_step_s
from gateway.index import QueueIndex
from gateway.operators import Operators
from gateway.resolve import fits
from gateway.schema import QueueView
from shared.clock import Clock
from shared.messages import JobRecord, Parallel, Progress, Reason, State, WorkerLease
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
_LEARN = 0.2
_SAMPLE_EVERY_S = 0.25
_SAMPLES_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class _Guess:
    eta_s: float
    at: float


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
        self._guesses: dict[str, _Guess] = {}
        self._sampled = 0.0
        #: By model: how far estimates were off, in seconds, the latest counting most.
        self.errors_s: dict[str, float] = {}

    def view(self, record: JobRecord) -> QueueView:
        """A queued job's place among those of its model, why it waits there, and when a worker may take it.

        The estimate is the work before it (what runs, by its own progress where it tells, and what is queued, by
        measured step times) spread over the workers that serve the model; None where nothing has been measured, or
        where no work that is done brings the job nearer.
        """
        model = record.request.model
        ahead = self.ahead(record)
        serving = self._fleet.serving(model)
        taking = [lease for lease in serving if self._operators.takes_jobs(lease.worker)]
        why, message = self._why(record, serving, taking)
        if not why:
            why, message = ("next", "") if ahead == 0 else ("jobs_ahead", f"{ahead} of this model go before it")
        eta_s = self._eta_s(model, ahead, taking) if why in ("next", "jobs_ahead") else None
        error_s = self.errors_s.get(model)
        return QueueView(
            position=ahead + 1,
            eta_s=eta_s,
            why=why,
            eta_error_s=None if eta_s is None or error_s is None else round(error_s, 1),
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

    def _why(self, record: JobRecord, serving: list[WorkerLease], taking: list[WorkerLease]) -> tuple[str, str]:
        """What holds the job back, if it is not other jobs."""
        model, asked = record.request.model, record.request.parallel
        operators = self._operators
        if operators.queue.held:
            return "held", operators.queue.reason or "the queue is held"
        limit = operators.limits(record.tenant).max_running
        if limit is not None and self._queue.running[record.tenant] >= limit:
            return "tenant_limit", f"at most {limit} jobs may be at workers at once (max_running)"
        rest_s = self._rest_s(record)
        if rest_s > 0:
            return "backing_off", f"tried again in {rest_s:.0f} s, after {record.attempts} failed attempts"
        if not serving:
            if self._fleet.starting(model):
                return "worker_starting", "a worker is loading"
            return "no_worker", f"no worker serves {model}"
        if asked != Parallel() and not any(fits(asked, layout) for lease in serving for layout in lease.layouts):
            return "layout_unavailable", "no worker offers the layout that was asked for"
        if not taking:
            if all(operators.drained(lease.worker) for lease in serving):
                return "workers_drained", f"every worker that serves {model} is drained"
            return "workers_quarantined", f"every worker that serves {model} has failed too often or is drained"
        return "", ""

    def _rest_s(self, record: JobRecord) -> float:
        if not record.attempts or not record.transitions or record.transitions[-1].reason in _SETBACKS:
            return 0.0
        rest_s = min(self._settings.backoff_s * 2.0 ** min(record.attempts - 1, 32), _MAX_REST_S)
        return rest_s - self._waited_s(record.id)

    # --- when --------------------------------------------------------------------------------------------------------

    def _eta_s(self, model: str, ahead: int, serving: list[WorkerLease]) -> float | None:
        executing = self._queue.executing(model)
        slots = max(1, sum(lease.capacity for lease in serving))
        if ahead == 0 and len(executing) < slots:
            return 0.0
        step_s = mean_step_s(model, serving)
        if step_s is None:
            return None
        running = sum(self._remaining(busy, step_s) for busy in executing)
        return round((running + ahead * step_s * self._queue.mean_steps(model)) / slots, 1)

    def _remaining(self, record: JobRecord, step_s: float) -> float:
        progress = self._progress_of(record)
        if progress is not None and progress.eta_s is not None:
            return progress.eta_s
        return record.request.steps * record.request.n * step_s

    def changed(self, record: JobRecord) -> None:
        """A record was seen: some estimates are remembered, and compared with what came."""
        guess = self._guesses.pop(record.id, None)
        now = self._clock.monotonic()
        if record.state is State.QUEUED:
            if guess is not None:
                self._guesses[record.id] = guess
            elif now - self._sampled >= _SAMPLE_EVERY_S and len(self._guesses) < _SAMPLES_KEPT:
                self._sampled = now
                eta_s = self.view(record).eta_s
                if eta_s is not None:
                    self._guesses[record.id] = _Guess(eta_s, now)
        elif guess is not None and record.state in (State.ASSIGNED, State.RUNNING):
            error_s = abs(now - guess.at - guess.eta_s)
            model = record.request.model
            known = self.errors_s.get(model)
            self.errors_s[model] = error_s if known is None else known + _LEARN * (error_s - known)
