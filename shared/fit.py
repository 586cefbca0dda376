"""Whether a job fits into a worker's device memory: one rule for the gateway, which says so, and the scheduler, which
goes by it. Pure.

A model's card says what its weights take on each rank of a group of a width, and what a job of the card's largest size
adds. A smaller job is taken to add that in proportion to its pixels times frames. What is not known never refuses: no
footprint for that width and sharding, or a device that does not tell its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from shared.messages import Footprint, JobRequest, Layout, ModelCard

#: Parts of the largest job are told apart in steps of an eighth of an octave, rounded up: at most 9 % too much.
_STEPS = 8


def volume(request: JobRequest) -> int:
    """Pixels times frames of one output."""
    return request.width * request.height * request.num_frames


def largest_volume(card: ModelCard) -> int:
    """The same, of the largest that the card allows."""
    return card.max_pixels * card.num_frames.max


@lru_cache(maxsize=4096)  # jobs are of a few sizes
def part(job_volume: int, largest: int) -> float:
    """Which part of the largest job that is, rounded up to a step; 1.0 where nothing is known."""
    if job_volume <= 0 or largest <= 0:
        return 1.0
    return float(2.0 ** (math.ceil(_STEPS * math.log2(job_volume / largest) - 1e-9) / _STEPS))


def needed(footprint: Footprint, part_of_largest: float) -> int:
    """Bytes on each rank."""
    return footprint.weights + math.ceil(footprint.largest_job * part_of_largest)


def least(
    footprints: tuple[Footprint, ...], part_of_largest: float, width: int, layouts: Iterable[Layout]
) -> int | None:
    """Bytes that the job takes on each rank of a group so wide, in the most frugal of these layouts (of any, if none
    is named); None where that is not known."""
    shardings = {(layout.dit_fsdp, layout.t5_fsdp) for layout in layouts}
    known = {
        (one.dit_fsdp, one.t5_fsdp): needed(one, part_of_largest)
        for one in footprints
        if one.width == width and (not shardings or (one.dit_fsdp, one.t5_fsdp) in shardings)
    }
    if not known or (shardings and len(known) < len(shardings)):
        return None
    return min(known.values())


def fits(
    footprints: tuple[Footprint, ...], part_of_largest: float, width: int, layouts: Iterable[Layout], memory: int
) -> bool:
    """Whether the job fits into devices of ``memory`` bytes (0: not known)."""
    if memory <= 0 or not footprints:
        return True
    takes = least(footprints, part_of_largest, width, layouts)
    return takes is None or takes <= memory
