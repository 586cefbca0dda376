"""The work of one agent: as many jobs at a time as its group holds, each from acceptance to its written result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.messages import Assign, Cancelled, Failed, FileGrants, Held, Outcome, Reason, Result
from shared.moderation import Moderation
from shared.telemetry import about, log
from shared.topology import PROGRESS
from workers.agent.attempt import Attempt
from workers.agent.downloads import Downloads
from workers.agent.folders import Folders
from workers.agent.granted import GrantedStore, JobFiles
from workers.agent.group import Group
from workers.agent.metrics import AgentMetrics
from workers.agent.progress import ProgressRelay
from workers.agent.results import Results

#: Weight of the newest step in the measured seconds per step.
_NEWEST = 0.2

_log = log(__name__)


class Work:
    """The jobs that are held.

    Attributes:
        attempts: the attempts at them, by job.
        free: set while there is none.
        room: set while there is room for one more.
        next_end: set when the next attempt has ended, and replaced then.
        delivering: attempts of which only the result's way to the bus is left.
        step_s: measured seconds per denoising step, by model.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        artifacts: Artifacts | GrantedStore,
        downloads: Downloads,
        moderation: Moderation,
        clock: Clock,
        group: Group,
        results: Results,
        metrics: AgentMetrics,
        capacity: int,
        stop_grace_s: float,
        provenance: str,
        work_dir: Path,
        changed: Callable[[], None],
    ) -> None:
        """
        Args:
            capacity: jobs at once.
            changed: called when ``attempts`` changes.
        """
        self._progress = bus.bucket(PROGRESS.name)
        self._artifacts = artifacts
        self._downloads = downloads
        self._moderation = moderation
        self._clock = clock
        self._group = group
        self._results = results
        self._metrics = metrics
        self._capacity = capacity
        self._stop_grace_s = stop_grace_s
        self._provenance = provenance
        self._folders = Folders(work_dir)
        self._changed = changed
        #: One write of progress at a time: on a busy worker the jobs that end before their turn need none.
        self._telling = asyncio.Lock()
        self.attempts: dict[str, Attempt] = {}
        self.free = asyncio.Event()
        self.free.set()
        self.room = asyncio.Event()
        self.room.set()
        self.next_end = asyncio.Event()
        self.delivering = 0
        self.step_s: dict[str, float] = {}

    @property
    def held(self) -> tuple[Held, ...]:
        """What is held, as a lease says it."""
        return tuple(Held(job=job, epoch=attempt.assign.epoch) for job, attempt in self.attempts.items())

    def begin(self, assign: Assign, tasks: asyncio.TaskGroup) -> None:
        """Hold this job, and work on it in one of these tasks."""
        assert self.room.is_set()
        assert assign.job not in self.attempts
        relay = ProgressRelay(self._progress, self._clock, self._telling)
        attempt = self.attempts[assign.job] = Attempt(
            assign,
            group=self._group,
            artifacts=self._files_of(assign),
            downloads=self._downloads,
            moderation=self._moderation,
            clock=self._clock,
            stop_grace_s=self._stop_grace_s,
            folders=self._folders,
            provenance=self._provenance,
            tell=relay.tell,
            measured=self._measured,
        )
        self.free.clear()
        if len(self.attempts) >= self._capacity:
            self.room.clear()
        self._changed()
        tasks.create_task(self._hold(attempt, relay))

    def _files_of(self, assign: Assign) -> JobFiles:
        if isinstance(self._artifacts, GrantedStore):
            return self._artifacts.of(assign.files or FileGrants())
        return self._artifacts

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
            if outcome is None and attempt.stored:
                outcome = Cancelled()  # nobody waits for it, but it left files
            self.delivering += 1
            if outcome is not None:
                await self._results.deliver(
                    Result(
                        job=assign.job,
                        epoch=assign.epoch,
                        worker=assign.worker,
                        incarnation=assign.incarnation,
                        outcome=outcome,
                        ran_s=ran_s,
                        tenant=assign.tenant,
                    )
                )
        del self.attempts[assign.job]
        self.delivering -= 1
        self.room.set()
        if not self.attempts:
            self.free.set()
        ended, self.next_end = self.next_end, asyncio.Event()
        ended.set()
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
