"""The end of each output, the same for every family that makes latents of a video: decode and mux, frame by frame.

An output whose decoding runs out of memory on any rank is decoded once more, on rank 0 alone, in tiles: slower, with a
fraction of the memory, and the same pixels but for rounding (``stages.tiles``). If that fails too, the job has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from msgspec import Struct
from torch import Tensor

from shared.messages import Reason, Stage
from workers.engine.course import Course
from workers.engine.errors import AgreedFailure
from workers.engine.families.base import Job
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import decode, tiles
from workers.engine.stages.mux import Frame, Output
from workers.engine.stages.stills import still_of
from workers.link import OutputFile


class Ended(Struct, frozen=True):
    """What became of one output: its file, on rank 0, and whether it had to be decoded in tiles."""

    files: list[OutputFile]
    in_tiles: bool


Frames = Generator[list[Frame], None, None]


class _Decoding(Struct):
    """Frames that come in so many portions, some of them empty; on ranks that decode nothing all are."""

    portions: int
    frames: Frames


def finish(
    vae: Any,
    latents: Tensor,
    split: WidthSplit | None,
    job: Job,
    index: int,
    course: Course,
    clear: Callable[[], None] = lambda: None,
) -> Ended:
    """The file of output ``index``. Collective.

    Frames go to the file as they come out of the VAE; on other ranks than 0 there is nothing to write, and without a
    split nothing to decode. Errors of rank 0's own work are agreed on before the next latent frame, lack of memory in
    decoding before the next exchange.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: [1, z, f, h, w], the same on all ranks.
        split: the width split to use.
        job: whose output it is.
        index: of the output.
        course: told after every latent frame.
        clear: gives cached memory back, before a second try.

    Raises:
        StoppedAt, AgreedFailure: on all ranks alike.
    """
    ending = _Ending(job, index, course)
    takes_part = job.out_dir is not None or split is not None
    try:
        whole = decode.frames(vae, latents, split) if takes_part else _nothing()
        return Ended(ending.write(_Decoding(latents.shape[2], whole)), in_tiles=False)
    except AgreedFailure as failure:
        if failure.reason != Reason.OUT_OF_MEMORY:
            raise
    clear()
    tiled = tiles.frames(vae, latents, job.out_dir) if job.out_dir is not None else _nothing()
    return Ended(ending.write(_Decoding(tiles.count(latents), tiled)), in_tiles=True)


def _nothing() -> Frames:
    yield from ()


class _Ending:
    """One output on its way into its file.

    Attributes:
        told: frames of the whole job that its progress has counted; a second try does not take it back.
    """

    def __init__(self, job: Job, index: int, course: Course) -> None:
        self._job, self._index, self._course = job, index, course
        self._step = (index + 1) * job.request.steps
        self._told = index * job.request.num_frames

    def write(self, decoding: _Decoding) -> list[OutputFile]:
        output: Output | None = None
        with self._course.agreed(self._step):
            output = self._open()
        try:
            with closing(decoding.frames):
                self._take(decoding, output)
            self._course.reach(Stage.MUX, self._index, self._job.request.n)
            with self._course.agreed(self._step):
                return [output.close()] if output is not None else []
        except BaseException:
            if output is not None:
                output.abandon()
            raise

    def _open(self) -> Output | None:
        request, folder = self._job.request, self._job.out_dir
        if folder is None:
            return None
        size = request.width, request.height
        still = still_of(request.output_format)
        frames, fps = request.num_frames, request.fps
        return Output(folder, self._index, *size, frames, fps, self._job.origin, still, request.output_quality)

    def _take(self, decoding: _Decoding, output: Output | None) -> None:
        request = self._job.request
        decoded = self._index * request.num_frames
        for remaining in reversed(range(decoding.portions)):
            with self._course.exchanging(self._step):
                frames = next(decoding.frames, [])
                # Taken out of the list, so that none lives on while the next latent frame is decoded.
                while output is not None and frames:
                    output.write(frames.pop(0))
                    decoded += 1
            self._told = max(self._told, decoded)
            if remaining:
                self._course.reach(Stage.DECODE, self._told, request.n * request.num_frames)
