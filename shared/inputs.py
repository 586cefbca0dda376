"""The files that a request may come with: by field, what each may be, and what becomes of it before a model sees it."""

from __future__ import annotations

from msgspec import Struct

from shared.decoding import How, Make
from shared.media import IMAGES, VIDEOS
from shared.messages import JobRequest

#: A face's clip is square, of this side: what Wan-Animate's motion encoder takes.
FACE_SIDE = 512


class Kind(Struct, frozen=True):
    """One field's files.

    Attributes:
        allowed: media types.
        how: it is made to fit the job's size.
        side: of the square that it is made to fit instead; 0: none.
    """

    allowed: frozenset[str]
    how: How = How.COVER
    side: int = 0


KINDS = {
    "image": Kind(IMAGES),
    "last_image": Kind(IMAGES),
    "video": Kind(VIDEOS),
    "mask": Kind(IMAGES | VIDEOS, How.GREY),
    "references": Kind(IMAGES, How.WHOLE),
    "pose": Kind(VIDEOS),
    "face": Kind(VIDEOS, side=FACE_SIDE),
    "background": Kind(VIDEOS),
}


def kind_of(name: str) -> Kind:
    """Of an input by its name in ``JobRequest.inputs``: ``references.0`` is one of ``references``."""
    return KINDS[name.partition(".")[0]]


def make(name: str, request: JobRequest) -> Make:
    """The frames that the job reads of that input."""
    kind = kind_of(name)
    return Make(
        how=kind.how,
        width=kind.side or request.width,
        height=kind.side or request.height,
        frames=request.num_frames if kind.allowed & VIDEOS else 1,
        fps=max(1, request.fps),
    )
