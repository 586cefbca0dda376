"""The work of one agent: at most one job at a time, from acceptance until its result is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.messages import Assign, Failed, Held, Outcome, Reason, Result
from shared.telemetry import about, log
from shared.topology import PROGRESS
from workers.agent.attempt import Attempt
from workers.agent.group import Group
from workers.agent.metrics import AgentMetrics
from workers.agent.progress import ProgressRelay
from workers.agent.results import Results

#: Weight of the newest step in the measured seconds per step.
_NEWEST = 0.2

_log = log(__name__)


class Work:
    """The job that is held, if any.

    Attributes:
        attempt: the attempt at it; None while there is none.
        free: set while there is none.
        delivering: only the result's way to the bus is left.
        step_s: measured seconds per denoising step, by model.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        artifacts: Artifacts,
        clock: Clock,
        group: Group,
        results: Results,
        metrics: AgentMetrics,
        stop_grace_s: float,
        work_dir: Path,
        changed: Callable[[], None],
    ) -> None:
        """
        Args:
            changed: called when ``attempt`` changes.
        """
        self._progress = bus.bucket(PROGRESS.name)
        self._artifacts = artifacts
        self._clock = clock
        self._group = group
        self._results = results
        self._metrics = metrics
        self._stop_grace_s = stop_grace_s
        self._work_dir = work_dir
        self._changed = changed
        self.attempt: Attempt | None = None
        self.free = asyncio.Event()
        self.free.set()
        self.delivering = False
        self.step_s: dict[str, float] = {}

    @property
    def held(self) -> tuple[Held, ...]:
        """What is held, as a lease says it."""
        if self.attempt is None:
            return ()
        return (Held(job=self.attempt.assign.job, epoch=self.attempt.assign.epoch),)

    def begin(self, assign: Assign, tasks: asyncio.TaskGroup) -> None:
        """Hold this job, and work on it in one of these tasks."""
        assert self.attempt is None
        relay = ProgressRelay(self._progress, self._clock)
        self.attempt = attempt = Attempt(
            assign,
            group=self._group,
            artifacts=self._artifacts,
            clock=self._clock,
            stop_grace_s=self._stop_grace_s,
            work_dir=self._work_dir,
            tell=relay.tell,
            measured=self._measured,
        )
        self.free.clear()
        self._changed()
        tasks.create_task(self._hold(attempt, relay))

    async def _hold(self, attempt: Attempt, relay: ProgressRelay) -> None:
        assign = attempt.assign
        with about(assign.job, assign.epoch):
            _log.info("attempt_begins", model=assign.request.model)
            relaying = asyncio.ensure_future(relay.run())
            try:
                outcome = await self._outcome(attempt)
            finally:
                relaying.cancel()
            ran_s = attempt.seconds
            word = _word(outcome)
            self._metrics.attempts.labels(word).inc()
            self._metrics.attempt_seconds.observe(ran_s)
            _log.info("attempt_ended", outcome=word, ran_s=round(ran_s, 3))
            if attempt.stored:
                self._results.watch(assign.job, assign.epoch)
            self.delivering = True
            if outcome is not None:
                await self._results.deliver(
                    Result(
                        job=assign.job,
                        epoch=assign.epoch,
                        worker=assign.worker,
                        incarnation=assign.incarnation,
                        outcome=outcome,
                        ran_s=ran_s,
                    )
                )
        self.attempt = None
        self.delivering = False
        self.free.set()
        self._changed()

    async def _outcome(self, attempt: Attempt) -> Outcome | None:
        try:
            return await attempt.run()
        except Exception as error:
            # A fault of the agent itself must not cost the job its end.
            _log.exception("attempt_crashed")
            return Failed(reason=Reason.ENGINE_ERROR, message=f"the worker failed: {type(error).__name__}")

    def _measured(self, model: str, step_s: float) -> None:
        before = self.step_s.get(model, step_s)
        self.step_s[model] = before + _NEWEST * (step_s - before)
        self._metrics.step_seconds.labels(model).observe(step_s)


def _word(outcome: Outcome | None) -> str:
    if outcome is None:
        return "taken"
    return outcome.reason if isinstance(outcome, Failed) else type(outcome).__name__.lower()
