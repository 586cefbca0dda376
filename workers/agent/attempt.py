"""One attempt at one job: fetch inputs, have the group do it, store outputs; its end is an ``Outcome``.

Whatever happens, the attempt ends: the run timeout counts from acceptance (or from when the pool has loaded the job's
model, which has a limit of its own) to the last output stored, and a group that does not stop when asked is killed. The
first reason to stop wins.

    preparing ──▶ running in the group ──▶ uploading ──▶ Succeeded
        │               │     ╲                │
        └──── stop ─────┴──────╲───────────────┴──▶ Cancelled | Failed(run_timeout) | Returned | nothing to say
                                ╲──▶ Failed (refused, broke, group lost)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from shared.clock import Clock
from shared.errors import ArtifactError, GenfleetError
from shared.intake import IntakeDown
from shared.messages import (
    Assign,
    Cancelled,
    Failed,
    Outcome,
    Progress,
    Reason,
    Returned,
    Stage,
    Succeeded,
)
from shared.moderation import Denied, Moderation
from shared.telemetry import log
from workers.agent.downloads import BadInput, Downloads
from workers.agent.folders import Folders
from workers.agent.granted import JobFiles
from workers.agent.group import Answer, Group, GroupLost, GroupNotReady
from workers.agent.orders import Stop
from workers.agent.progress import MAX_PREVIEW
from workers.agent.transfer import BadOutput, fetch_inputs, judge_outputs, store_outputs
from workers.link import Broke, Done, Pulse, Refused, Run, Stopped

#: Characters of a failure's sentence; a result must fit its bucket.
MAX_MESSAGE = 2000

_log = log(__name__)
T = TypeVar("T")


class _Interrupted(GenfleetError):
    """The attempt is to stop."""


class Attempt:
    """One attempt, from acceptance to its outcome.

    Attributes:
        assign: what was accepted.
        accepted: monotonic time of the acceptance.
        stored: it began to put files into the store.
        looked_at: its orders have been read since it began.
    """

    def __init__(
        self,
        assign: Assign,
        *,
        group: Group,
        artifacts: JobFiles,
        downloads: Downloads,
        moderation: Moderation,
        clock: Clock,
        stop_grace_s: float,
        folders: Folders,
        provenance: str,
        tell: Callable[[Progress], None],
        measured: Callable[[str, float], None],
    ) -> None:
        """
        Args:
            moderation: asked about what it made before that is kept.
            folders: where its files go meanwhile.
            provenance: what its files say of their origin (the setting).
            tell: called with the attempt's progress, as often as there is any.
            measured: called with the model and the seconds that a denoising step took.
        """
        self.assign = assign
        self.accepted = clock.monotonic()
        #: Seconds that loading its model took, if another had to go for it.
        self._load_s: float | None = None
        self.stored = False
        self.looked_at = False
        self._group = group
        self._artifacts = artifacts
        self._downloads = downloads
        self._moderation = moderation
        self._clock = clock
        self._stop_grace_s = stop_grace_s
        self._folders = folders
        self._provenance = provenance
        self._tell = tell
        self._measured = measured
        self._stop: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self._left: list[str] = []

    def stop(self, why: Stop) -> None:
        """End it, at the next step if the group is at it. Only the first call counts."""
        if not self._stop.done():
            _log.info("attempt_stopping", why=why)
            self._stop.set_result(why)

    @property
    def seconds(self) -> float:
        """How long ago it was accepted."""
        return self._clock.monotonic() - self.accepted

    async def run(self) -> Outcome | None:
        """Its outcome; None if the job has gone on without this attempt and nobody wants to know."""
        timer: asyncio.Task[None] | None = None
        folder: Path | None = None
        try:
            folder = self._folders.take()
            await self._have_model()
            timer = asyncio.ensure_future(self._time_out())
            return await self._outcome(folder)
        except _Interrupted:
            return self._stopped()
        except (BadInput, BadOutput) as error:
            reason = Reason.INPUT_REJECTED if isinstance(error, BadInput) else Reason.ENGINE_ERROR
            return _failed(reason, str(error), final=isinstance(error, BadInput))
        except (ArtifactError, OSError) as error:
            _log.exception("attempt_failed")
            return _failed(Reason.ENGINE_ERROR, f"the worker could not keep the job's files: {error}")
        except Denied as denied:
            return _failed(Reason.OUTPUT_REJECTED, str(denied), final=True)
        except IntakeDown as error:
            _log.error("intake_down", error=str(error))
            return _failed(Reason.ENGINE_ERROR, str(error))
        except GroupNotReady as error:
            _log.warning("group_not_ready", error=str(error))
            return Returned(reason=Reason.GROUP_LOST)
        finally:
            if timer is not None:
                timer.cancel()
            if folder is not None:
                await self._folders.give_back(folder, self._left)

    async def _have_model(self) -> None:
        """Have the model loaded, before the job's own time begins to count."""
        model = self.assign.request.model
        if self._group.models.has(model):
            return
        self._at(Stage.PREPARING)
        began = self._clock.monotonic()
        await self._unless_stopped(self._group.have(model))
        self._load_s = self._clock.monotonic() - began

    async def _time_out(self) -> None:
        await self._clock.sleep(self.assign.run_timeout_s)
        self.stop(Stop.TIMEOUT)

    async def _outcome(self, folder: Path) -> Outcome:
        assign = self.assign
        inputs: dict[str, str] = {}
        request = assign.request
        if request.inputs():
            self._at(Stage.PREPARING)
            fetching = fetch_inputs(self._artifacts, self._downloads, request, folder, self._clock)
            inputs = await self._unless_stopped(fetching)
        run = Run(
            job=assign.job,
            epoch=assign.epoch,
            request=request,
            inputs=inputs,
            out_dir=str(folder / "out"),
            provenance=self._provenance,
        )
        try:
            answer = await self._perform(run)
        except GroupLost as error:
            return Returned(reason=Reason.GROUP_LOST) if error.blameless else _failed(error.reason, str(error))
        match answer:
            case Done(files=files, used=used):
                self._at(Stage.UPLOADING)
                await self._unless_stopped(judge_outputs(self._moderation, assign, files, folder / "out", self._clock))
                self.stored = True
                storing = store_outputs(self._artifacts, assign.job, assign.epoch, files, folder / "out", self._clock)
                outputs = await self._unless_stopped(storing)
                named = [name for file in files for name in (file.name, file.thumbnail, file.spritesheet)]
                self._left = [name for name in named if name]
                if self._load_s is not None:
                    used = {**used, "load_s": round(self._load_s, 3)}
                return Succeeded(outputs=outputs, used=used)
            case Refused(reason=reason, message=message):
                return _failed(reason, message, final=True)
            case Broke(reason=reason, message=message):
                return _failed(reason, message)
            case Stopped():
                return _failed(Reason.ENGINE_ERROR, "the group stopped the job without being asked to")

    async def _perform(self, run: Run) -> Answer:
        """The group's answer, if it came before any reason to stop."""
        performing = self._group.begin(run, self._pulse)
        try:
            await _either(performing, self._stop)
            if not self._stop.done():
                return await performing
            if not performing.done():
                self._group.cancel(run.job, run.epoch)
                grace = asyncio.ensure_future(self._clock.sleep(self._stop_grace_s))
                await _either(performing, grace)
                grace.cancel()
            if not performing.done():
                message = f"the group did not stop within {self._stop_grace_s:g} s"
                _log.error("group_killed", why=message)
                self._group.kill(Reason.GROUP_HUNG, message, run.job, run.epoch)
            await asyncio.gather(performing, return_exceptions=True)
            raise _Interrupted
        finally:
            performing.cancel()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        working = asyncio.ensure_future(work)
        try:
            await _either(working, self._stop)
            if self._stop.done():
                raise _Interrupted
            return await working
        finally:
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    def _stopped(self) -> Outcome | None:
        match self._stop.result():
            case Stop.CANCEL:
                return Cancelled()
            case Stop.TIMEOUT:
                limit = self.assign.run_timeout_s
                return _failed(Reason.RUN_TIMEOUT, f"it ran longer than {limit:g} s", final=True)
            case Stop.DRAIN:
                return Returned(reason=Reason.WORKER_DRAINING)
            case Stop.TAKEN:
                return None

    def _pulse(self, pulse: Pulse) -> None:
        if pulse.step_s is not None:
            self._measured(self.assign.request.model, pulse.step_s)
        if pulse.stage:
            self._at(pulse.stage, pulse)

    def _may_show(self, preview: bytes) -> bool:
        """Where somebody judges what was made, nothing of it is shown before."""
        return len(preview) <= MAX_PREVIEW and not self._moderation.asks

    def _at(self, stage: str, pulse: Pulse | None = None) -> None:
        self._tell(
            Progress(
                job=self.assign.job,
                epoch=self.assign.epoch,
                worker=self.assign.worker,
                stage=stage,
                step=pulse.step if pulse else 0,
                total_steps=pulse.total_steps if pulse else 0,
                eta_s=pulse.eta_s if pulse else None,
                at=self._clock.wall(),
                preview=pulse.preview if pulse and self._may_show(pulse.preview) else b"",
            )
        )


async def _either(one: asyncio.Future[Any], other: asyncio.Future[Any]) -> None:
    """Return when one of them is done. As ``asyncio.wait``, which takes thrice the time for it."""
    woken = asyncio.get_running_loop().create_future()

    def wake(_: object) -> None:
        if not woken.done():
            woken.set_result(None)

    one.add_done_callback(wake)
    other.add_done_callback(wake)
    try:
        await woken
    finally:
        one.remove_done_callback(wake)
        other.remove_done_callback(wake)


def _failed(reason: str, message: str, *, final: bool = False) -> Failed:
    return Failed(reason=reason, message=message[:MAX_MESSAGE], final=final)
