"""How far a job is and how long it will take, from the measured seconds of its own steps and of earlier jobs' ends."""

from __future__ import annotations

from collections.abc import Callable

from shared.messages import JobRequest, Stage
from workers.engine.course import Where
from workers.engine.families.base import Used
from workers.link import Pulse

#: How much a new measurement counts against what was known.
_WEIGHT = 0.4


class Pace:
    """Seconds per denoising step and per decoded pixel, learnt over the life of a group.

    Steps are remembered per size of job, because their cost is not proportional to it; decoding is.
    """

    def __init__(self) -> None:
        self._step_s: dict[tuple[int, int, int, bool], float] = {}
        self._decode_s_per_pixel: float | None = None
        self.last_step_s: float | None = None

    def step_s(self, request: JobRequest) -> float | None:
        """Seconds per step for jobs of that size; None if none has run."""
        return self._step_s.get(_size(request))

    def decode_s(self, request: JobRequest) -> float:
        """Seconds from the last step of one output to its file; 0 if unknown."""
        return (self._decode_s_per_pixel or 0.0) * _pixels(request)

    def stepped(self, request: JobRequest, seconds: float) -> None:
        """A step took that long."""
        self.last_step_s = self._step_s[_size(request)] = _mix(self.step_s(request), seconds)

    def finished(self, request: JobRequest, used: Used) -> None:
        """A job of that request is done."""
        per_output = float(used.get("decode_s", 0.0)) / request.n
        self._decode_s_per_pixel = _mix(self._decode_s_per_pixel, per_output / _pixels(request))


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

    def should_stop(self) -> bool:
        """As ``Listener.should_stop``."""
        return self._should_stop()

    def at(self, where: Where) -> None:
        """As ``Listener.at``."""
        now = self._clock()
        if self._before is not None:
            last, since = self._before
            if last.stage == Stage.DENOISE and where.step == last.step + 1:
                self._pace.stepped(self._request, now - since)
        self._before = (where, now)
        self._send(
            Pulse(
                job=self._job,
                epoch=self._epoch,
                stage=where.stage,
                step=where.step,
                total_steps=where.total_steps,
                eta_s=self._eta(where),
                step_s=self._pace.step_s(self._request),
            )
        )

    def _eta(self, where: Where) -> float | None:
        step_s = self._pace.step_s(self._request)
        if step_s is None:
            return None
        left = where.total_steps - where.step
        outputs = -(-left // self._request.steps) if left else 1
        return left * step_s + outputs * self._pace.decode_s(self._request)


def _size(request: JobRequest) -> tuple[int, int, int, bool]:
    return (request.width, request.height, request.num_frames, request.guidance_scale > 1.0)


def _pixels(request: JobRequest) -> int:
    return request.width * request.height * request.num_frames


def _mix(known: float | None, measured: float) -> float:
    return measured if known is None else known + _WEIGHT * (measured - known)
