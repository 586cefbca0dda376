"""How far a job is and how long it will take, from the measured seconds of its own steps and of earlier jobs' ends."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from msgspec.structs import replace

from shared.messages import JobRequest, Stage
from workers.engine.course import Where
from workers.engine.families.base import Used
from workers.link import Pulse

#: How much a new measurement counts against what was known.
_WEIGHT = 0.4
#: Seconds between two previews, and from the first thing there was to see to the first preview: a job that is done
#: sooner needs none.
PREVIEW_EVERY_S = 1.0
FIRST_PREVIEW_S = 0.5


class Pace:
    """Seconds per denoising step and per output's end, decode and mux, learnt over the life of a group and remembered
    per size of job: neither is proportional to it."""

    def __init__(self) -> None:
        self._step_s: dict[tuple[int, int, int, bool], float] = {}
        self._end_s: dict[tuple[int, int, int], float] = {}
        self.last_step_s: float | None = None

    def step_s(self, request: JobRequest) -> float | None:
        """Seconds per step for jobs of that size; None if none has run."""
        return self._step_s.get(_size(request))

    def end_s(self, request: JobRequest) -> float | None:
        """Seconds from the last step of one output of that size to its file; None if none has been made."""
        return self._end_s.get(_frame_size(request))

    def stepped(self, request: JobRequest, seconds: float) -> None:
        """A step took that long."""
        self.last_step_s = self._step_s[_size(request)] = _mix(self.step_s(request), seconds)

    def finished(self, request: JobRequest, used: Used) -> None:
        """A job of that request is done."""
        per_output = float(used.get("decode_s", 0.0)) / request.n
        self._end_s[_frame_size(request)] = _mix(self.end_s(request), per_output)


class Report:
    """Rank 0's listener: turns a job's way into pulses.

    Args:
        job: its id.
        epoch: its epoch.
        request: its request.
        pace: of the group.
        clock: monotonic seconds.
        send: takes each pulse.
        should_stop: whether the job has been cancelled.
    """

    def __init__(
        self,
        job: str,
        epoch: int,
        request: JobRequest,
        pace: Pace,
        clock: Callable[[], float],
        send: Callable[[Pulse], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._job, self._epoch, self._request, self._pace = job, epoch, request, pace
        self._clock, self._send, self._should_stop = clock, send, should_stop
        self._before: tuple[Where, float] | None = None
        self._last: Pulse | None = None
        self._next_preview: float | None = None
        #: Of the output being decoded: when that began, and the first pulse after frames came out.
        self._decoding_since = 0.0
        self._first_frames: tuple[int, float] | None = None

    def should_stop(self) -> bool:
        """As ``Listener.should_stop``."""
        return self._should_stop()

    def at(self, where: Where) -> None:
        """As ``Listener.at``."""
        now = self._clock()
        self._measure(where, now)
        self._before = (where, now)
        eta_s = self._eta(where, now)
        self._last = Pulse(
            job=self._job,
            epoch=self._epoch,
            stage=where.stage,
            step=where.step,
            total_steps=where.total_steps,
            eta_s=None if eta_s is None else round(eta_s, 3),
            step_s=self._pace.step_s(self._request),
        )
        self._send(self._last)

    def show(self, picture: Callable[[], bytes]) -> None:
        """As ``Listener.show``: once a second at most. A preview that cannot be made is none; the job goes on."""
        now = self._clock()
        if self._next_preview is None:
            self._next_preview = now + FIRST_PREVIEW_S
        if now < self._next_preview or self._last is None:
            return
        self._next_preview = now + PREVIEW_EVERY_S
        try:
            seen = picture()
        except Exception as error:
            self._next_preview = math.inf
            print(f"no previews of this job: {type(error).__name__}: {error}", file=sys.stderr)
            return
        self._send(replace(self._last, preview=seen))

    def _measure(self, where: Where, now: float) -> None:
        last, since = self._before if self._before is not None else (None, now)
        denoised = last is not None and last.stage == Stage.DENOISE
        if last is not None and denoised and (where.stage == Stage.DECODE or where.step == last.step + 1):
            self._pace.stepped(self._request, now - since)
        if where.stage != Stage.DECODE:
            return
        if last is None or last.stage != Stage.DECODE:
            self._decoding_since, self._first_frames = now, None
        elif self._first_frames is None:
            self._first_frames = (where.step, now)

    def _eta(self, where: Where, now: float) -> float | None:
        """Seconds to the end of the job, as far as its parts have been measured. An output's end that never was is
        taken for one step: of the published models a step takes between one and ten times as long."""
        request = self._request
        step_s, end_s = self._pace.step_s(request), self._pace.end_s(request)
        usual = end_s if end_s is not None else step_s
        match where.stage:
            case Stage.DECODE:
                output = where.step // request.num_frames
                this = self._decoding_left(where, now, usual)
            case Stage.MUX:
                output = where.step
                this = None if end_s is None else max(0.0, end_s - (now - self._decoding_since))
            case _:
                output = where.step // request.steps
                left = (output + 1) * request.steps - where.step
                this = None if step_s is None or usual is None else left * step_s + usual
        following = request.n - 1 - output
        if following == 0 or this is None:
            return this
        if step_s is None or usual is None:
            return None
        return this + following * (request.steps * step_s + usual)

    def _decoding_left(self, where: Where, now: float, usual: float | None) -> float | None:
        """Seconds to the end of this output: by what it usually takes, but not less than the frames that are left take
        at the speed of this time's. The first frames do not count: Wan's first latent frame is one, the others four."""
        expected = None if usual is None else max(0.0, usual - (now - self._decoding_since))
        if self._first_frames is None or where.step == self._first_frames[0]:
            return expected
        frames, since = self._first_frames
        left = self._request.num_frames - where.step % self._request.num_frames
        seen = (now - since) / (where.step - frames) * left
        return seen if self._pace.end_s(self._request) is None or expected is None else max(seen, expected)


def _size(request: JobRequest) -> tuple[int, int, int, bool]:
    return (*_frame_size(request), request.guidance_scale > 1.0)


def _frame_size(request: JobRequest) -> tuple[int, int, int]:
    return (request.width, request.height, request.num_frames)


def _mix(known: float | None, measured: float) -> float:
    return measured if known is None else known + _WEIGHT * (measured - known)
