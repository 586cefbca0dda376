"""Clips by the engine itself: the same loading, conditions, steps and caches as a worker's."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.messages import AttentionCache, JobRequest, StepCache
from workers.engine import devices
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.course import Alone, Course, Silent
from workers.engine.families.base import Job
from workers.engine.families.wan import Wan
from workers.engine.media import Picture
from workers.engine.opening import open_model
from workers.engine.parallel.mesh import Mesh
from workers.engine.stages import decode
from workers.pool import Pool
from workers.training.export import SHIFT


@dataclass(frozen=True)
class Made:
    """A clip [3, t, H, W] in [-1, 1], the seconds its denoising took, and how many steps reused something."""

    clip: Tensor
    seconds: float
    reused: int


class Sampler:
    """The model in `folder`, opened as a worker on the CPU opens it."""

    def __init__(self, folder: Path) -> None:
        self._device = devices.open_device("cpu")
        opened = open_model(Pool(model=str(folder), device="cpu"), self._device, Mesh("cpu", 1))
        assert isinstance(opened, Wan)
        self._model = opened

    def make(
        self,
        prompt: str,
        photo: Tensor | None,
        *,
        side: int,
        frames: int = 17,
        steps: int = 4,
        seed: int = 0,
        cache: AttentionCache | None = None,
        step_cache: StepCache | None = None,
    ) -> Made:
        """A clip of `prompt`, from a first frame [3, side, side] in [-1, 1] or from the words alone."""
        card = self._model.card
        request = JobRequest(
            model="wan-demo",
            task="text-to-video" if photo is None else "image-to-video",
            prompt=prompt,
            width=side,
            height=side,
            num_frames=frames,
            fps=8,
            steps=steps,
            guidance_scale=1.0,
            shift=SHIFT,
            solver=card.solvers[0],
            seed=seed,
            cache=cache,
            step_cache=step_cache,
        )
        pictures = {} if photo is None else {"image": _picture(photo)}
        job = Job(request, self._model.layouts[0], pictures, None)
        course = Course(Alone(), Silent(), self._device.is_out_of_memory)
        conditions = self._model.conditions(job, self._model.texts(request, course), course)
        kept = Cache(cache, steps)
        place = self._model.prepare(job.layout, kept, request)
        state = self._model.start(request, seed, conditions)
        began = time.perf_counter()
        for after in self._model.denoising(request, state, conditions, place, course):
            state = after
        seconds = time.perf_counter() - began
        skipped = self._model._skipped()
        kept.clear()
        latents = conditions.given.end(state.latents)
        shown = [frame for chunk in decode.frames(self._model._vae, latents, None) for frame in chunk]
        clip = torch.stack([torch.from_numpy(frame) for frame in shown]).permute(3, 0, 1, 2).float() / 127.5 - 1
        blocks = len(self._model._transformers[0].blocks)
        return Made(clip, seconds, skipped or kept.reused // blocks)


def _picture(frame: Tensor) -> Picture:
    pixels = ((frame.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Picture(pixels.shape[1], pixels.shape[0], pixels.numpy().tobytes())
