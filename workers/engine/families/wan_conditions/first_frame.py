"""Timesteps per token (Wan2.2 TI2V): the first latent frame is the picture's own, at timestep 0 in every step, and the
other frames are made around it. Without a picture all tokens have the same timestep, as everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shared.messages import JobRequest, Task
from workers.engine.course import Course
from workers.engine.families.base import Job
from workers.engine.families.wan_conditions.base import Condition, Eyes, Takes
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import encode_image


class KeptFrame(Condition):
    """The first latent frame is given.

    Args:
        frame: its latents, [1, z, 1, h, w].
        patch: of the transformer, in latents: frames, rows, columns.
    """

    def __init__(self, frame: Tensor, patch: tuple[int, int, int]) -> None:
        self.frame, self._patch = frame, patch

    def arguments(self, latents: Tensor, timestep: int) -> dict[str, Tensor]:
        frames, rows, columns = (size // by for size, by in zip(latents.shape[2:], self._patch, strict=True))
        times = torch.full((1, frames, rows * columns), float(timestep), device=latents.device)
        times[:, 0] = 0.0
        return {"hidden_states": self.end(latents), "timestep": times.flatten(1)}

    def end(self, latents: Tensor) -> Tensor:
        return torch.cat([self.frame, latents[:, :, 1:]], 2)


_TAKES: Mapping[str, Takes] = {
    Task.IMAGE_TO_VIDEO: Takes(needs=("image",)),
    Task.TEXT_TO_VIDEO: Takes(),
    Task.TEXT_TO_IMAGE: Takes(),
}


class FirstFrame:
    """A checkpoint with timesteps per token."""

    def __init__(self, eyes: Eyes) -> None:
        self.takes, self._eyes = _TAKES, eyes

    def check(self, request: JobRequest) -> None:
        return None

    def extra_frames(self, request: JobRequest) -> int:
        return 0

    def condition(self, job: Job, split: WidthSplit | None, course: Course) -> Condition:
        picture = job.pictures.get("image")
        if picture is None:
            return Condition()
        frame = self._eyes.video([encode_image.pixels(picture, self._eyes.device)], split, course)
        return self._kept(frame)

    def blank(self, latents: Tensor) -> Condition:
        return self._kept(torch.zeros_like(latents[:, :, :1]))

    def _kept(self, frame: Tensor) -> KeptFrame:
        return KeptFrame(frame, self._eyes.checkpoint.transformer.patch_size)
