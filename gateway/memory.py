"""Whether a job fits into the device memory of the workers that there are (``shared.fit``), and how to say that it does
not. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.resolve import fits as offers
from shared.errors import InvalidRequest
from shared.fit import fits, largest_volume, least, part, volume
from shared.messages import JobRequest, Layout, ModelCard, WorkerLease

_GIB = 1024**3


def has_room(card: ModelCard | None, request: JobRequest, lease: WorkerLease, width: int | None = None) -> bool:
    """Whether the job fits into that worker's devices. ``width``: of its group, if not the present one."""
    if card is None:
        return True
    layouts = _layouts(request, lease) if width in (None, lease.width) else ()
    return fits(card.footprints, _part(card, request), width or lease.width, layouts, lease.device_memory)


def check_room(card: ModelCard, request: JobRequest, leases: Iterable[WorkerLease]) -> None:
    """Refuse a job that would fit into no worker that serves the model, not even when its group is whole again.

    Raises:
        InvalidRequest: it names ``size``.
    """
    if not card.footprints:
        return
    known = list(leases)
    if known and not any(
        has_room(card, request, lease) or has_room(card, request, lease, lease.full_width) for lease in known
    ):
        raise InvalidRequest(too_large(card, request, known), "size")


def too_large(card: ModelCard, request: JobRequest, leases: Iterable[WorkerLease]) -> str:
    """The sentence that says so."""
    needed, there = 0, 0
    for lease in leases:
        takes = least(card.footprints, _part(card, request), lease.width, _layouts(request, lease))
        if takes is not None and (not needed or takes - lease.device_memory < needed - there):
            needed, there = takes, lease.device_memory
    frames = f" of {request.num_frames} frames" if request.num_frames > 1 else ""
    return (
        f"{request.width}x{request.height}{frames} takes {needed / _GIB:.1f} GiB of each device, and no worker that "
        f"serves {card.name} has that: the nearest has {there / _GIB:.1f} GiB"
    )


def _part(card: ModelCard, request: JobRequest) -> float:
    return part(volume(request), largest_volume(card))


def _layouts(request: JobRequest, lease: WorkerLease) -> list[Layout]:
    return [layout for layout in lease.layouts if offers(request.parallel, layout)]
