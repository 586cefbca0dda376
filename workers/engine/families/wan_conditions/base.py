"""The port of the conditions: what a kind of checkpoint takes, and what one job's denoiser is given.

A ``Conditioner`` belongs to a loaded checkpoint; it makes one ``Condition`` per job. To condition a new kind of
checkpoint, write one of each and name it in ``kinds``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from msgspec import Struct
from torch import Tensor

from shared.messages import JobRequest
from workers.engine import noise_schedulers as noise
from workers.engine.checkpoint import Checkpoint
from workers.engine.course import Course
from workers.engine.errors import NotServed
from workers.engine.families.base import Job
from workers.engine.media import Picture
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import denoise, encode_image
from workers.engine.stages import vae as causal

#: The request's fields that are inputs, and those that only some tasks have.
INPUTS = ("image", "last_image", "video", "mask", "references")
SETTINGS = ("strength", "control_scale")


class Takes(Struct, frozen=True):
    """What a task takes of ``INPUTS`` and ``SETTINGS``: what it needs, and what it may have."""

    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


class Condition:
    """What one job's denoiser is given beside text. This one is nothing more: text alone."""

    def begin(self, state: denoise.DenoiseState, plan: noise.Schedule) -> denoise.DenoiseState:
        """The state that the job's loop starts from, given pure noise at step 0."""
        return state

    def arguments(self, latents: Tensor, timestep: int) -> dict[str, Tensor]:
        """What the transformer's forward is called with, text aside, at those latents and that timestep. All but the
        ``timestep``, [1] or [1, tokens], is turned into the transformer's own type."""
        return {"hidden_states": latents, "timestep": torch.tensor([timestep], device=latents.device)}

    def end(self, latents: Tensor) -> Tensor:
        """What is to be decoded, of the latents after the last step."""
        return latents


class Conditioner(Protocol):
    """How one loaded checkpoint is conditioned."""

    #: By task, what it takes.
    takes: Mapping[str, Takes]

    def check(self, request: JobRequest) -> None:
        """What ``takes`` cannot say. Pure.

        Raises:
            NotServed: names the field.
        """
        ...

    def extra_frames(self, request: JobRequest) -> int:
        """Latent frames that the denoiser has in front of those of the video. Pure."""
        ...

    def condition(self, job: Job, split: WidthSplit | None, course: Course) -> Condition:
        """The job's condition. Collective where there is a ``split``, the width split of the VAE.

        Raises:
            AgreedFailure, StoppedAt: on all ranks alike.
        """
        ...

    def blank(self, latents: Tensor) -> Condition:
        """A condition of the right shapes for a pass that warms up, for latents [1, z, 1, h, w]."""
        ...


def check_inputs(takes: Mapping[str, Takes], request: JobRequest) -> None:
    """Refuse what the task does not take, and the lack of what it needs.

    Raises:
        NotServed: names the field.
    """
    task = takes.get(request.task)
    if task is None:
        raise NotServed(f"task: this checkpoint cannot do {request.task!r}")
    for name in (*INPUTS, *SETTINGS):
        given = getattr(request, name)
        is_given = given is not None and given != ()
        if is_given and name not in task.needs and name not in task.may:
            raise NotServed(f"{name}: not among what {request.task} takes here")
        if not is_given and name in task.needs:
            raise NotServed(f"{name}: {request.task} needs one")


class Eyes:
    """The parts of a checkpoint that see: its VAE's encoder, and CLIP where it has one.

    Attributes:
        checkpoint: what the folder says.
        device: where to compute.
    """

    def __init__(
        self, checkpoint: Checkpoint, vae: Any, image_encoder: Any, image_processor: Any, device: torch.device
    ) -> None:
        self.checkpoint, self.device = checkpoint, device
        self._vae, self._image_encoder, self._image_processor = vae, image_encoder, image_processor

    def video(self, chunks: Iterable[Tensor], split: WidthSplit | None, course: Course) -> Tensor:
        """Normalised latents [1, z, f, h, w] of pixels in the chunks of ``stages.vae.chunk_sizes``, the same on all
        ranks. Collective where there is a split; agreed on either way."""
        if split is None:
            with course.agreed(0):
                return causal.encode(self._vae, chunks)
        with course.exchanging(0), split.active():
            parts = (split.part(chunk, causal.scale(self._vae)) for chunk in chunks)
            return split.whole(causal.encode(self._vae, parts))

    def features(self, pictures: Sequence[Picture], course: Course) -> Tensor:
        """CLIP's features of the pictures, [pictures, tokens, D]. Agreed on."""
        with course.agreed(0):
            return self.look(pictures)

    def look(self, pictures: Sequence[Picture]) -> Tensor:
        """As ``features``, on this rank alone."""
        return encode_image.clip_features(self._image_encoder, self._image_processor, pictures, self.device)
