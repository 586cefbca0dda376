"""Image-to-video by condition channels beside the latents (a mask and the latents of a video that holds the given
frames), with CLIP features where the transformer wants them: Wan2.1 and Wan2.2 I2V, and first-and-last-frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from shared.messages import JobRequest, Task
from workers.engine.checkpoint import IMAGINED
from workers.engine.course import Course
from workers.engine.errors import NotServed
from workers.engine.families.base import Job
from workers.engine.families.wan_conditions.base import Condition, Eyes, Takes
from workers.engine.media import Picture
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import encode_image
from workers.engine.stages.vae import chunk_sizes


class Channels(Condition):
    """Channels that go beside the latents, [1, c, f, h, w], and CLIP features, [pictures, tokens, D]."""

    def __init__(self, channels: Tensor, features: Tensor | None) -> None:
        self.channels, self.features = channels, features

    def arguments(self, latents: Tensor, timestep: int) -> dict[str, Tensor]:
        given = super().arguments(torch.cat([latents, self.channels], 1), timestep)
        if self.features is not None:
            given["encoder_hidden_states_image"] = self.features
        return given


class ImageChannels:
    """An image-to-video checkpoint."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes
        checkpoint = eyes.checkpoint
        takes: dict[str, Takes] = {}
        if checkpoint.takes_first_frame:
            takes[Task.IMAGE_TO_VIDEO] = Takes(needs=("image",))
        if checkpoint.takes_last_frame:
            takes[Task.FIRST_LAST_FRAME_TO_VIDEO] = Takes(needs=("image", "last_image"))
        if checkpoint.extras.text_to_video != "refuse":
            takes |= {Task.TEXT_TO_VIDEO: Takes(), Task.TEXT_TO_IMAGE: Takes()}
        self.takes: Mapping[str, Takes] = takes

    def check(self, request: JobRequest) -> None:
        if request.last_image is not None and request.num_frames < 2:
            raise NotServed("num_frames: a first and a last frame are two")

    def extra_frames(self, request: JobRequest) -> int:
        return 0

    def condition(self, job: Job, split: WidthSplit | None, course: Course) -> Condition:
        config, request = self._eyes.checkpoint, job.request
        image, last = job.pictures.get("image"), job.pictures.get("last_image")
        if image is None and config.extras.text_to_video == "imagined_frame":
            return self._imagined(request, split, course)
        if image is None:
            vae = config.vae
            frames = (request.num_frames - 1) // vae.scale_factor_temporal + 1
            rows, columns = request.height // vae.scale_factor_spatial, request.width // vae.scale_factor_spatial
            return self._zeros(torch.zeros(1, vae.z_dim, frames, rows, columns, device=self._eyes.device))
        latents = self._eyes.video(self._video(image, last, request.num_frames), split, course)
        mask = encode_image.frame_mask(latents, config.vae.scale_factor_temporal, ends=last is not None)
        features = None
        if config.has_clip:
            features = self._eyes.features([image] if last is None else [image, last], course)
        return Channels(torch.cat([mask, latents], 1), features)

    def _imagined(self, request: JobRequest, split: WidthSplit | None, course: Course) -> Channels:
        """The condition of a canvas to paint on, marked as a picture that is to be made up."""
        config = self._eyes.checkpoint
        canvas = encode_image.canvas(request.height, request.width, self._eyes.device)
        latents = self._eyes.video(_then_grey(canvas, request.num_frames), split, course)
        mask = IMAGINED * encode_image.frame_mask(latents, config.vae.scale_factor_temporal, ends=False)
        made = self._zeros(latents)
        made.channels = torch.cat([mask, latents], 1)
        return made

    def blank(self, latents: Tensor) -> Condition:
        config = self._eyes.checkpoint
        made = self._zeros(latents)
        if config.has_clip:
            side = 2 * config.vae.scale_factor_spatial
            picture = Picture(side, side, bytes(side * side * 3))
            made.features = self._eyes.look([picture] if config.takes_first_frame else [picture, picture])
        return made

    def _zeros(self, latents: Tensor) -> Channels:
        """The condition of a job without a picture: mask, latents and features all zero."""
        config = self._eyes.checkpoint.transformer
        shape = (latents.shape[0], config.in_channels - latents.shape[1], *latents.shape[2:])
        features = None if config.image_dim is None else latents.new_zeros(1, 1, config.image_dim)
        return Channels(latents.new_zeros(shape), features)

    def _video(self, image: Picture, last: Picture | None, frames: int) -> Iterator[Tensor]:
        """The condition video, [1, 3, t, H, W] per chunk of the encoder: the given frames, and zero between them or
        the first one in every frame."""
        repeat = self._eyes.checkpoint.extras.image_condition == "repeat_first_frame"
        first = encode_image.pixels(image, self._eyes.device)
        done = 0
        for size in chunk_sizes(frames):
            filler = first if repeat or done == 0 else torch.zeros_like(first)
            chunk = filler.expand(-1, -1, size, -1, -1)
            done += size
            if last is not None and done == frames:
                chunk = torch.cat([chunk[:, :, :-1], encode_image.pixels(last, self._eyes.device)], 2)
            yield chunk


def _then_grey(first: Tensor, frames: int) -> Iterator[Tensor]:
    for number, size in enumerate(chunk_sizes(frames)):
        yield (first if number == 0 else torch.zeros_like(first)).expand(-1, -1, size, -1, -1)
