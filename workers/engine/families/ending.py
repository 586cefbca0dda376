"""The end of each output, the same for every family that makes latents of a video: decode and mux, frame by frame."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from shared.messages import Stage
from workers.engine.course import Course
from workers.engine.families.base import Job
from workers.engine.parallel.vae import WidthSplit
from workers.engine.stages import decode
from workers.engine.stages.mux import Output
from workers.link import OutputFile


def finish(
    vae: Any, latents: Tensor, split: WidthSplit | None, job: Job, index: int, course: Course
) -> list[OutputFile]:
    """The file of output ``index``, on rank 0. Collective.

    Frames go to the file as they come out of the VAE; on other ranks than 0 there is nothing to write, and without a
    split nothing to decode. Errors of rank 0's own work are agreed on before the next latent frame.

    Args:
        vae: ``AutoencoderKLWan``.
        latents: [1, z, f, h, w], the same on all ranks.
        split: the width split to use; its degree divides w.
        job: whose output it is.
        index: of the output.
        course: told after every latent frame.

    Raises:
        StoppedAt, AgreedFailure: on all ranks alike.
    """
    request = job.request
    step, all_frames = (index + 1) * request.steps, request.n * request.num_frames
    chunks = decode.frames(vae, latents, split) if job.out_dir is not None or split is not None else iter(())
    output: Output | None = None
    with course.agreed(step):
        if job.out_dir is not None:
            output = Output(job.out_dir, index, request.width, request.height, request.num_frames, request.fps)
    try:
        decoded = index * request.num_frames
        for remaining in reversed(range(latents.shape[2])):
            if split is not None:
                frames = next(chunks)
            with course.agreed(step):
                if split is None:
                    frames = next(chunks, [])
                # Taken out of the list, so that none lives on while the next latent frame is decoded.
                while output is not None and frames:
                    output.write(frames.pop(0))
                    decoded += 1
            if remaining:
                course.reach(Stage.DECODE, decoded, all_frames)
        course.reach(Stage.MUX, index, request.n)
        with course.agreed(step):
            files = [output.close()] if output is not None else []
    except BaseException:
        if output is not None:
            output.abandon()
        raise
    return files
