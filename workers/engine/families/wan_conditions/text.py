"""Text alone; and video-to-video, which starts from a clip's latents instead of from pure noise (SDEdit, Meng et al.,
arXiv:2108.01073)."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace
from torch import Tensor

from shared.messages import JobRequest, Task
from workers.engine import noise_schedulers as noise
from workers.engine.course import Course
from workers.engine.errors import NotServed
from workers.engine.families.base import Job
from workers.engine.families.wan_conditions.base import Condition, Eyes, Takes
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import denoise, encode_image

#: Of video-to-video, where the request says nothing.
STRENGTH = 0.8


class StartClip(Condition):
    """The loop starts at a later step, from the clip's latents with that step's share of noise.

    Args:
        latents: of the clip, [1, z, f, h, w].
        strength: 0..1, the share of the steps that are done.
    """

    def __init__(self, latents: Tensor, strength: float) -> None:
        self.latents, self.strength = latents, strength

    def begin(self, state: denoise.DenoiseState, plan: noise.Schedule) -> denoise.DenoiseState:
        first = first_step(plan.steps, self.strength)
        sigma = plan.sigmas[first]
        return replace(state, step=first, latents=(1 - sigma) * self.latents + sigma * state.latents)


_TAKES: Mapping[str, Takes] = {
    Task.TEXT_TO_VIDEO: Takes(),
    Task.TEXT_TO_IMAGE: Takes(),
    Task.VIDEO_TO_VIDEO: Takes(needs=("video",), may=("strength",)),
}


class Text:
    """A text-to-video checkpoint."""

    def __init__(self, eyes: Eyes) -> None:
        self.takes, self._eyes = _TAKES, eyes

    def check(self, request: JobRequest) -> None:
        if request.task == Task.VIDEO_TO_VIDEO and first_step(request.steps, strength_of(request)) >= request.steps:
            raise NotServed(
                f"strength: {strength_of(request):g} of {request.steps} steps is less than one step: nothing would "
                "change"
            )

    def extra_frames(self, request: JobRequest) -> int:
        return 0

    def condition(self, job: Job, split: WidthSplit | None, course: Course) -> Condition:
        clip = job.clips.get("video")
        if clip is None:
            return Condition()
        chunks = encode_image.clip_chunks(clip, self._eyes.device)
        return StartClip(self._eyes.video(chunks, split, course), strength_of(job.request))

    def blank(self, latents: Tensor) -> Condition:
        return Condition()


def strength_of(request: JobRequest) -> float:
    """The request's strength, or the usual one."""
    return STRENGTH if request.strength is None else request.strength


def first_step(steps: int, strength: float) -> int:
    """The 0-based step that a job of that strength starts at."""
    return steps - min(int(steps * strength), steps)
