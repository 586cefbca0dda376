"""Control by further blocks (VACE, Jiang et al., arXiv:2503.07598): a control clip, a mask of what is to be made anew
in it, and pictures of what is to appear, as latent frames before those of the video.

What is kept and what is made anew are encoded apart; beside them goes the mask, each latent's square of pixels as
channels. A still to start or to end with is a clip that is grey and masked everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from shared.messages import JobRequest, Task
from workers.engine.course import Course
from workers.engine.errors import NotServed
from workers.engine.families.base import Job
from workers.engine.families.wan_conditions.base import Condition, Eyes, Takes
from workers.engine.media import Clip, Picture
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import encode_image
from workers.engine.stages.vae import chunk_sizes

#: Of the control, where the request says nothing.
SCALE = 1.0
#: What a clip holds where nothing is given: 128 of 255, as in diffusers' examples.
_GREY = 2 * 128 / 255 - 1
_MASK_MIDDLE = 0.5

#: Pixels [1, 3, t, H, W] and mask [1, 1, t, H, W] of frames from the first to the second index.
_Window = Callable[[int, int], tuple[Tensor, Tensor]]


class Controlled(Condition):
    """What VACE's blocks see.

    Args:
        control: [1, 2·z + mask channels, references + f, h, w].
        scale: of each block's hint, [blocks].
        references: latent frames in front of the video's.
    """

    def __init__(self, control: Tensor, scale: Tensor, references: int) -> None:
        self.control, self.scale, self.references = control, scale, references

    def arguments(self, latents: Tensor, timestep: int) -> dict[str, Tensor]:
        control = {"control_hidden_states": self.control, "control_hidden_states_scale": self.scale}
        return super().arguments(latents, timestep) | control

    def end(self, latents: Tensor) -> Tensor:
        return latents[:, :, self.references :]


_TAKES: Mapping[str, Takes] = {
    Task.VIDEO_EDITING: Takes(may=("video", "mask", "references", "control_scale")),
    Task.IMAGE_TO_VIDEO: Takes(needs=("image",), may=("references", "control_scale")),
    Task.FIRST_LAST_FRAME_TO_VIDEO: Takes(needs=("image", "last_image"), may=("references", "control_scale")),
    Task.TEXT_TO_VIDEO: Takes(),
    Task.TEXT_TO_IMAGE: Takes(),
}


class Control:
    """A VACE checkpoint."""

    def __init__(self, eyes: Eyes) -> None:
        self.takes, self._eyes = _TAKES, eyes

    def check(self, request: JobRequest) -> None:
        if request.task == Task.VIDEO_EDITING and request.video is None and not request.references:
            raise NotServed("video: video-editing needs a clip, references, or both")
        if request.mask is not None and request.video is None:
            raise NotServed("mask: there is no video that it could be of")
        if request.last_image is not None and request.num_frames < 2:
            raise NotServed("num_frames: a first and a last frame are two")

    def extra_frames(self, request: JobRequest) -> int:
        return len(request.references)

    def condition(self, job: Job, split: WidthSplit | None, course: Course) -> Condition:
        request = job.request
        window = self._window(job)
        kept = self._eyes.video(_parts(window, request.num_frames, keep=True), split, course)
        # Where nothing is given both are the same: zero everywhere.
        is_given = any(name in {**job.clips, **job.pictures} for name in ("video", "image", "last_image"))
        anew = self._eyes.video(_parts(window, request.num_frames, keep=False), split, course) if is_given else kept
        control = torch.cat([torch.cat([kept, anew], 1), self._mask(window, request.num_frames, kept)], 1)
        for index in range(len(request.references)):
            pixels = encode_image.pixels(job.pictures[f"references.{index}"], self._eyes.device)
            frame = self._eyes.video([pixels], split, course)
            rest = frame.new_zeros(1, control.shape[1] - frame.shape[1], 1, *frame.shape[3:])
            control = torch.cat([torch.cat([frame, rest], 1), control], 2)
        scale = SCALE if request.control_scale is None else request.control_scale
        return Controlled(control, self._scales(scale), len(request.references))

    def blank(self, latents: Tensor) -> Condition:
        channels = self._eyes.checkpoint.transformer.vace_in_channels
        return Controlled(latents.new_zeros(1, channels, *latents.shape[2:]), self._scales(SCALE), 0)

    def _scales(self, scale: float) -> Tensor:
        blocks = len(self._eyes.checkpoint.transformer.vace_layers or ())
        return torch.full((blocks,), scale, device=self._eyes.device)

    def _window(self, job: Job) -> _Window:
        """What the job shows of its clip, frame by frame, and of the mask: 1 is to be made anew."""
        device, request = self._eyes.device, job.request
        clip, mask = job.clips.get("video"), job.clips.get("mask")
        stills = {0: job.pictures.get("image"), request.num_frames - 1: job.pictures.get("last_image")}
        if clip is None:
            return lambda start, end: _stills(stills, start, end, request, device)

        def of_clip(start: int, end: int) -> tuple[Tensor, Tensor]:
            pixels = encode_image.clip_pixels(clip, start, end, device)
            if mask is None:
                return pixels, torch.ones_like(pixels[:, :1])
            return pixels, (_held(mask, start, end, device) + 1) / 2

        return of_clip

    def _mask(self, window: _Window, frames: int, like: Tensor) -> Tensor:
        """The mask at the latents' size, [1, side², f, h, w], of the frame that stands for each latent frame."""
        side = self._eyes.checkpoint.vae.scale_factor_spatial
        _, _, count, rows, columns = like.shape
        shown = [int((index + 0.5) * frames / count) for index in range(count)]
        mask = torch.cat([window(frame, frame + 1)[1] for frame in shown], 2)
        squares = mask.view(count, rows, side, columns, side).permute(2, 4, 0, 1, 3)
        return squares.reshape(1, side * side, count, rows, columns)


def _parts(window: _Window, frames: int, *, keep: bool) -> Iterator[Tensor]:
    """The clip with all else zero than what is kept, or than what is to be made anew, in the encoder's chunks."""
    start = 0
    for size in chunk_sizes(frames):
        pixels, mask = window(start, start + size)
        anew = torch.where(mask > _MASK_MIDDLE, 1.0, 0.0)
        yield pixels * ((1 - anew) if keep else anew)
        start += size


def _held(mask: Clip, start: int, end: int, device: torch.device) -> Tensor:
    """The mask's frames; a single one holds for all."""
    if mask.frames == 1:
        return encode_image.clip_pixels(mask, 0, 1, device).expand(-1, -1, end - start, -1, -1)
    return encode_image.clip_pixels(mask, start, end, device)


def _stills(
    stills: dict[int, Picture | None], start: int, end: int, request: JobRequest, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Frames of a clip that shows the stills at their places and nothing elsewhere."""
    shape = (1, 3, end - start, request.height, request.width)
    filler = _GREY if any(stills.values()) else 0.0
    pixels, mask = torch.full(shape, filler, device=device), torch.ones(1, 1, *shape[2:], device=device)
    for place, picture in stills.items():
        if picture is not None and start <= place < end:
            pixels[:, :, place - start : place - start + 1] = encode_image.pixels(picture, device)
            mask[:, :, place - start] = 0.0
    return pixels, mask
