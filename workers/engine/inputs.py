"""A job's inputs: files that the agent has fetched → pictures and clips of the job's size, and what the job becomes by
them."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from shared.errors import InvalidRequest
from shared.media import IMAGES, inspect
from shared.messages import IntRange, JobRequest
from workers.engine.clips import read_clip
from workers.engine.errors import InputRejected
from workers.engine.media import Clip, Picture, read_picture, read_reference


class Inputs(Struct, frozen=True):
    """What was read.

    Attributes:
        request: the job's, with no more frames than its clip has.
        pictures, clips: as ``families.base.Job`` has them.
    """

    request: JobRequest
    pictures: dict[str, Picture]
    clips: dict[str, Clip]


def read(request: JobRequest, paths: dict[str, str], allowed: IntRange) -> Inputs:
    """Read all inputs of the job.

    Args:
        request: of the job, already checked.
        paths: local files by name, as ``JobRequest.inputs`` has the names.
        allowed: the model's numbers of frames. A job whose clip is shorter makes as many as the clip has, rounded down
            to one of them.

    Raises:
        InputRejected: names the field.
    """
    pictures: dict[str, Picture] = {}
    clips: dict[str, Clip] = {}
    # The clip first: it says how many frames the others are to have.
    for name in sorted(request.inputs(), key=lambda each: each != "video"):
        if name not in paths:
            raise InputRejected(f"{name}: not delivered")
        try:
            match name.partition(".")[0]:
                case "video":
                    clip = _clip(request, Path(paths[name]))
                    request = replace(request, num_frames=_rounded(clip.frames, allowed))
                    clips[name] = _cut(clip, request.num_frames)
                case "mask":
                    clips[name] = _mask(request, Path(paths[name]))
                case "references":
                    pictures[name] = read_reference(Path(paths[name]), request.width, request.height)
                case _:
                    pictures[name] = read_picture(Path(paths[name]), request.width, request.height)
        except InputRejected as error:
            raise InputRejected(f"{name}: {error}") from error
    return Inputs(request, pictures, clips)


def _clip(request: JobRequest, path: Path, *, grey: bool = False) -> Clip:
    return read_clip(path, request.width, request.height, request.fps, request.num_frames, grey=grey)


def _mask(request: JobRequest, path: Path) -> Clip:
    """A clip as long as the job, or one picture for all frames; which, its first bytes tell."""
    with path.open("rb") as file:
        try:
            is_picture = inspect(file, "mask").media_type in IMAGES
        except InvalidRequest as error:
            raise InputRejected(str(error)) from error
    if is_picture:
        picture = read_picture(path, request.width, request.height)
        return Clip(picture.width, picture.height, 1, picture.grey(), channels=1)
    mask = _clip(request, path, grey=True)
    if mask.frames < request.num_frames:
        raise InputRejected(f"has {mask.frames} frames at {request.fps} fps, the job has {request.num_frames}")
    return mask


def _rounded(frames: int, allowed: IntRange) -> int:
    rounded = frames - (frames - allowed.offset) % allowed.multiple_of
    if rounded < allowed.min:
        raise InputRejected(f"the clip has {frames} frames, fewer than the model can make")
    return rounded


def _cut(clip: Clip, frames: int) -> Clip:
    size = clip.width * clip.height * clip.channels
    return clip if clip.frames == frames else Clip(clip.width, clip.height, frames, clip.data[: frames * size])
