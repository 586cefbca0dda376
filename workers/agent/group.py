"""The torchrun group, one life after another.

    STARTING ──hello, loading…, ready──▶ READY ──run ⇄ done | refused | broke | stopped──▶ READY
        ▲                                  │
        └──── kill all, wait, launch ◀─────┴── link closed, process gone, garbage, silence, poisoned, asked to

``BROKEN`` is STARTING without much hope: the checkpoint cannot be loaded, or even the narrowest width keeps failing.

A pool of several models has one of them loaded. ``have`` another ends the group in good order and launches it anew
(``SWAPPING``); if that does not come up, the model rests, is not offered meanwhile, and the one before comes back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.clock import Clock
from shared.errors import GenfleetError
from shared.messages import Reason
from shared.telemetry import log
from workers.agent.launches import Launches
from workers.agent.life import End, Life
from workers.agent.models import Models
from workers.agent.process import Launcher
from workers.agent.pulling import Pulls
from workers.agent.race import first
from workers.link import (
    Broke,
    Cancel,
    CannotLoad,
    Done,
    FromRank,
    Hello,
    Loading,
    Pulse,
    Quit,
    Ready,
    Refused,
    Run,
    Stopped,
)
from workers.pool import Pool

_log = log(__name__)

Answer = Done | Refused | Broke | Stopped


class GroupLost(GenfleetError):
    """The group ended while it had a job.

    Attributes:
        reason: a word of ``messages.Reason``.
        blameless: another job was the cause.
    """

    def __init__(self, reason: str, message: str, *, blameless: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.blameless = blameless


class GroupNotReady(GenfleetError):
    """The group is not there to take a job."""


class Phase(StrEnum):
    """Where the group is."""

    STARTING = "starting"
    READY = "ready"
    SWAPPING = "swapping"
    BROKEN = "broken"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class _Job:
    run: Run
    pulse: Callable[[Pulse], None]
    answer: asyncio.Future[Answer]


class Group:
    """One pool's group. ``run`` supervises it; the rest is for the agent, from the same event loop.

    Attributes:
        phase: where it is.
        width: ranks of the present life.
        detail: why it is narrower than it should be, or broken.
        loaded: 0..1 while the model loads, or its checkpoint is pulled.
        doing: what it is at meanwhile.
        models: what it can serve, what is loaded, and how long loading took.
        device_memory: bytes of the smallest device; 0: not known.
        launched: lives so far.
        ends: lives that ended unasked, by reason.
    """

    def __init__(
        self,
        pool: Pool,
        launcher: Launcher,
        clock: Clock,
        runtime_dir: Path,
        changed: Callable[[], None],
        pulls: Pulls | None = None,
    ) -> None:
        """
        Args:
            runtime_dir: where each life gets its folder.
            changed: called after any change of the attributes.
            pulls: brings the checkpoint to this machine before a launch, if the pool says so.
        """
        self._pulls = pulls
        self._limits = pool.limits
        self._launcher = launcher
        self._clock = clock
        self._runtime_dir = runtime_dir
        self._changed = changed
        self._launches = Launches(pool.width, pool.narrowest, pool.limits.launch_attempts)
        self._life: Life | None = None
        self._capacity = pool.capacity
        self._jobs: dict[tuple[str, int], _Job] = {}
        #: The job because of which the present life ends, if it is one of several.
        self._culprit: tuple[str, int] | None = None
        self._leaving = asyncio.Event()
        self.phase = Phase.STARTING
        self.width = pool.width
        self.full_width = pool.width
        self.detail = ""
        self.loaded = 0.0
        self.doing = ""
        self.device = ""
        self.device_name = ""
        self.device_memory = 0
        self.models = Models(pool.names, clock)
        self._swap: asyncio.Future[None] | None = None
        self.launched = 0
        self.ends: Counter[str] = Counter()

    async def run(self) -> None:
        """Launch the group, again whenever it ends, until ``quit``; when cancelled, nothing of it is left."""
        while not self._leaving.is_set():
            if self._pulls is not None and not await self._pulled(self._pulls):
                continue
            life = Life(self._limits, self._launcher, self._clock, self._runtime_dir, self._hear, self._ending)
            self._life = life
            self.width, self.loaded, self.doing = self._launches.width, 0.0, ""
            self.launched += 1
            model = self.models.launch()
            _log.info("group_launch", width=self.width, launch=self.launched, model=model)
            self._changed()
            end = End(Reason.GROUP_LOST, "the worker ended")
            try:
                end = await life.live(self.width, self._launches.first_device, model)
            finally:
                self._life = None
                self._lose_jobs(end)
            if self._leaving.is_set():
                break
            if self._swap is None:
                await self._mourn(end, was_ready=life.came_up.is_set())
            elif model == self.models.wanted:
                self._fail_swap(end)
        self._end_swap(GroupNotReady("the worker is leaving"))
        self._set(Phase.ENDED)

    async def _pulled(self, pulls: Pulls) -> bool:
        """Whether the checkpoint is there now. If not, it is time to try again, or to leave."""

        def on_pull(fraction: float, what: str) -> None:
            self._got_on(fraction, f"pulling {what}")

        async def left() -> str:
            await self._leaving.wait()
            return ""

        failure = await first(pulls.ensure(on_pull), left())
        if failure:
            await self._mourn(End(Reason.CANNOT_SERVE, failure, unloadable=True), was_ready=False)
        return not failure and not self._leaving.is_set()

    def _fail_swap(self, end: End) -> None:
        self.ends[end.reason] += 1
        failed = self.models.wanted
        _log.warning("model_not_loaded", model=failed, reason=end.reason, message=end.message)
        self.models.failed(f"{end.reason}: {end.message}", unloadable=end.unloadable)
        self._set(Phase.STARTING)
        self._end_swap(GroupNotReady(f"{failed} could not be loaded: {end.message}"))

    def _end_swap(self, error: GroupNotReady | None = None) -> None:
        swap, self._swap = self._swap, None
        if swap is None or swap.done():
            return
        if error is None:
            swap.set_result(None)
        else:
            swap.set_exception(error)
            swap.exception()  # whoever wanted it may have gone meanwhile

    async def _mourn(self, end: End, *, was_ready: bool) -> None:
        if end.unloadable and self.models.failed(f"{end.reason}: {end.message}", unloadable=True):
            self.ends[end.reason] += 1
            _log.warning("model_not_loaded", reason=end.reason, message=end.message, instead=self.models.wanted)
            self._changed()
            return
        if end.unloadable:
            self._launches.unloadable()
        elif was_ready:
            self._launches.lost()
        else:
            self._launches.failed()
        self.ends[end.reason] += 1
        broken = end.unloadable or self._launches.exhausted
        delay = self._launches.delay_s
        _log.warning("group_ended", reason=end.reason, message=end.message, relaunch_s=delay, broken=broken)
        width = self._launches.width
        narrow = f"{width} of {self.full_width} ranks: " if width < self.full_width else ""
        self.detail = f"{narrow}{end.reason}: {end.message}"[:500]
        self._set(Phase.BROKEN if broken else Phase.STARTING)
        if delay:
            await first(self._clock.sleep(delay), self._left())

    async def _left(self) -> None:
        await self._leaving.wait()

    # --- for the agent -----------------------------------------------------------------------------------------------

    async def have(self, model: str) -> bool:
        """Have that one of the pool's models loaded; whether another had to go for it. It goes on being loaded if
        whoever waits is cancelled.

        Raises:
            GroupNotReady: the group is not idle, or the model cannot be loaded now.
        """
        if self.models.has(model):
            return False
        if self.phase is not Phase.READY or self._life is None or self._jobs or not self.models.serves(model):
            raise GroupNotReady(f"the group is {self.phase}, without {model}")
        _log.info("model_swap", model=model, instead_of=self.models.wanted)
        self._swap = swap = asyncio.get_running_loop().create_future()
        self.models.want(model)
        self._set(Phase.SWAPPING)
        self._life.send(Quit())
        self._life.quit()
        await asyncio.shield(swap)
        return True

    def begin(self, run: Run, pulse: Callable[[Pulse], None]) -> asyncio.Future[Answer]:
        """Have the group do this job; ``pulse`` is called with each of its pulses. The future gets its answer, or
        ``GroupLost`` if the group ends meanwhile; whoever loses interest cancels it.

        Raises:
            GroupNotReady: nothing was sent.
        """
        if self.phase is not Phase.READY or self._life is None or len(self._jobs) >= self._capacity:
            raise GroupNotReady(f"the group is {self.phase}")
        key = run.job, run.epoch
        job = self._jobs[key] = _Job(run, pulse, asyncio.get_running_loop().create_future())
        self._life.send(run)
        return job.answer

    def cancel(self, job: str, epoch: int) -> None:
        """Ask the group to stop that job at the next step."""
        if self._life is not None:
            self._life.send(Cancel(job=job, epoch=epoch))

    def kill(self, reason: str, message: str, job: str, epoch: int) -> None:
        """End the present life by force because of that job; a new one follows."""
        if self._life is not None:
            self._culprit = job, epoch
            self._set(Phase.STARTING)
            self._life.kill(End(reason, message))

    def quit(self) -> None:
        """End for good: in good order if the group is ready and idle, else by force. ``run`` then returns."""
        self._leaving.set()
        if self._life is None:
            return
        if self.phase is Phase.READY and not self._jobs:
            self._life.send(Quit())
            self._life.quit()
        else:
            self._life.kill(End(Reason.WORKER_DRAINING, "the worker is leaving"))

    # --- what rank 0 says --------------------------------------------------------------------------------------------

    def _set(self, phase: Phase) -> None:
        self.phase = phase
        self._changed()

    def _hear(self, frame: FromRank) -> End | None:
        match frame:
            case Hello(device=device, device_name=name):
                if self._life is not None and self._life.came_up.is_set():
                    return End(Reason.ENGINE_ERROR, "the group said hello twice")
                self.device, self.device_name = device, name
            case Loading(fraction=fraction, what=what):
                self._got_on(fraction, f"loading {what}" if what else "warming up")
            case Ready():
                self._came_up(frame)
            case CannotLoad(message=message):
                return End(Reason.CANNOT_SERVE, message, unloadable=True)
            case Pulse():
                job = self._jobs.get((frame.job, frame.epoch))
                if job is not None:
                    job.pulse(frame)
            case Done() | Refused() | Broke() | Stopped():
                return self._answered(frame)
        return None

    def _got_on(self, fraction: float, doing: str) -> None:
        before, self.loaded, self.doing = self.loaded, min(max(fraction, 0.0), 1.0), doing[:200]
        if int(before * 20) != int(self.loaded * 20):
            self._changed()

    def _came_up(self, frame: Ready) -> None:
        if self._life is None:
            return
        self._life.came_up.set()
        self._launches.ready()
        self.models.ready(frame)
        self.device_memory, self.loaded, self.doing = frame.device_memory, 1.0, ""
        if self.width == self.full_width:
            self.detail = ""
        load_s = self.models.load_s
        models, acceleration = [card.name for card in frame.cards], frame.acceleration
        _log.info("group_ready", width=self.width, models=models, load_s=load_s, acceleration=acceleration)
        self._set(Phase.READY)
        self._end_swap()

    def _answered(self, frame: Answer) -> End | None:
        job = self._jobs.pop((frame.job, frame.epoch), None)
        if job is None:
            return End(Reason.ENGINE_ERROR, f"rank 0 answered for job {frame.job[:40]!r}, which it does not have")
        poisoned = isinstance(frame, Broke) and frame.poisoned
        if poisoned:
            # Before the answer is seen: the group must not look ready then.
            self._set(Phase.STARTING)
            self._culprit = frame.job, frame.epoch
        else:
            self._launches.served()
        if not job.answer.done():
            job.answer.set_result(frame)
        return End(Reason.DEVICE_ERROR, "the group may not serve again after an error") if poisoned else None

    def _ending(self) -> None:
        if self.phase is Phase.READY:
            self._set(Phase.STARTING)

    def _lose_jobs(self, end: End) -> None:
        jobs, self._jobs = self._jobs, {}
        culprit, self._culprit = self._culprit, None
        for key, job in jobs.items():
            if not job.answer.done():
                blameless = culprit is not None and culprit != key
                job.answer.set_exception(GroupLost(end.reason, end.message, blameless=blameless))
