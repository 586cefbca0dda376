"""What the seeds' dialects ask for, moved to the nearest that the served model can do. Pure.

Their clients were written for one model on one machine: its sizes, steps and layouts. Here these are wishes, so that
the same client works on any model; what was really used stands in the job.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from gateway.resolve import Offer, fits, nearest, parallel_of
from gateway.schema.requests import ParallelBody, SubmitBody
from shared.messages import FloatRange, IntRange, ModelCard, Parallel


def adapted(body: SubmitBody, card: ModelCard, offers: Iterable[Offer]) -> SubmitBody:
    """The request with size, frames, rates, steps, guidance, shift, solver and layout within the card and the offers.

    Args:
        offers: of the workers that serve the model now; none means that any layout may wait.
    """
    layout = parallel_of(body.parallel)
    known = tuple(offers)
    served = not known or layout == Parallel() or any(fits(layout, offer.layout) for offer in known)
    return replace(
        body,
        size=None if body.size is None else _size(body.size, card),
        num_frames=body.num_frames if body.num_frames == 1 else _integer(body.num_frames, card.num_frames),
        fps=_integer(body.fps, card.fps),
        steps=_integer(body.steps, card.steps),
        guidance_scale=_number(body.guidance_scale, card.guidance_scale),
        shift=_number(body.shift, card.shift),
        clip_len=None if card.clip_len is None else _integer(body.clip_len, card.clip_len),
        overlap=None if card.overlap is None else _integer(body.overlap, card.overlap),
        solver=body.solver if body.solver in card.solvers else None,
        parallel=body.parallel if served else ParallelBody(),
    )


def _size(size: str, card: ModelCard) -> str:
    """The nearest size of about the same shape."""
    width, height = (int(side) for side in size.split("x"))
    if width * height > card.max_pixels:
        scale = (card.max_pixels / (width * height)) ** 0.5
        width, height = int(width * scale), int(height * scale)
    width, height = nearest(width, card.width), nearest(height, card.height)
    while width * height > card.max_pixels:  # rounding went up
        if width - card.width.multiple_of >= card.width.min and (
            width >= height or height - card.height.multiple_of < card.height.min
        ):
            width -= card.width.multiple_of
        elif height - card.height.multiple_of >= card.height.min:
            height -= card.height.multiple_of
        else:
            break
    return f"{width}x{height}"


def _integer(given: int | None, allowed: IntRange) -> int | None:
    return None if given is None else nearest(given, allowed)


def _number(given: float | None, allowed: FloatRange) -> float | None:
    return None if given is None else min(allowed.max, max(allowed.min, given))
