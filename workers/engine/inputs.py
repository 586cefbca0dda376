"""A job's inputs: files of frames that intake has made → the job's pictures and clips, and what the job becomes by
them."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from shared.inputs import make
from shared.messages import IntRange, JobRequest
from workers.engine.errors import InputRejected
from workers.engine.media import Clip, Frames, Picture, read_frames


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
        paths: files of frames by name, as ``JobRequest.inputs`` has the names.
        allowed: the model's numbers of frames. A job whose clip is shorter makes as many as the clip has, rounded down
            to one of them.

    Raises:
        InputRejected: names the field.
    """
    pictures: dict[str, Picture] = {}
    clips: dict[str, Clip] = {}
    asked = request
    # The clip first: it says how many frames the others are to have.
    for name in sorted(request.inputs(), key=lambda each: each != "video"):
        if name not in paths:
            raise InputRejected(f"{name}: not delivered")
        try:
            frames = read_frames(Path(paths[name]), make(name, asked))
            match name.partition(".")[0]:
                case "video":
                    request = replace(request, num_frames=_rounded(frames.frames, allowed))
                    clips[name] = _cut(frames.clip(), request.num_frames)
                case "mask":
                    clips[name] = _mask(request, frames)
                case "pose" | "face" | "background":
                    clips[name] = frames.clip()
                case _:
                    pictures[name] = frames.picture()
        except InputRejected as error:
            raise InputRejected(f"{name}: {error}") from error
    return Inputs(request, pictures, clips)


def _mask(request: JobRequest, frames: Frames) -> Clip:
    """A clip as long as the job, or one picture for all frames."""
    if not frames.still and frames.frames < request.num_frames:
        raise InputRejected(f"has {frames.frames} frames at {request.fps} fps, the job has {request.num_frames}")
    return frames.clip()


def _rounded(frames: int, allowed: IntRange) -> int:
    rounded = frames - (frames - allowed.offset) % allowed.multiple_of
    if rounded < allowed.min:
        raise InputRejected(f"the clip has {frames} frames, fewer than the model can make")
    return rounded


def _cut(clip: Clip, frames: int) -> Clip:
    size = clip.width * clip.height * clip.channels
    return clip if clip.frames == frames else Clip(clip.width, clip.height, frames, clip.data[: frames * size])
