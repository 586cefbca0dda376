"""One question answered: a file → a verdict, and the frames that were asked for. What happens inside of the child."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from PIL import Image

from shared import media
from shared.decoding import MAX_MESSAGE, Ask, How, Make, Shape, Verdict
from shared.errors import GenfleetError, InvalidRequest
from workers.intake import clips, pictures
from workers.intake.pictures import Rejected


class _Unwritten(GenfleetError):
    """The frames could not be written."""


def answer(ask: Ask, file: IO[bytes], target: IO[bytes] | None) -> Verdict:
    """The verdict about the file, at whose beginning it is read; frames go to ``target``."""
    try:
        return _decoded(ask, file, target)
    except (Rejected, InvalidRequest) as error:
        return Verdict(refused=str(error)[:MAX_MESSAGE])
    except _Unwritten as error:
        return Verdict(unwritten=str(error)[:MAX_MESSAGE])


def _decoded(ask: Ask, file: IO[bytes], target: IO[bytes] | None) -> Verdict:
    seen = media.inspect(file, ask.field, frozenset(ask.allowed))
    if ask.make is None:
        width, height = _sides(file, seen.media_type)
    else:
        assert target is not None
        width, height = write(file, seen.media_type, ask.make, target)
    return Verdict(media_type=seen.media_type, width=width, height=height)


def _sides(file: IO[bytes], media_type: str) -> tuple[int, int]:
    return pictures.read(file, media_type).size if media_type in media.IMAGES else clips.check(file)


def write(file: IO[bytes], media_type: str, make: Make, target: IO[bytes]) -> tuple[int, int]:
    """Write the frames after their head; the input's own sides.

    Raises:
        Rejected: it cannot be decoded, or is beyond a limit.
    """
    still = media_type in media.IMAGES
    count, sides = 0, (0, 0)
    _put(target, Shape(width=0, height=0, frames=0, channels=0).pack())
    for frame in _frames(file, media_type, make):
        sides = frame.size
        _put(target, pictures.fitted(frame, make.width, make.height, How(make.how)).tobytes())
        count += 1
    shape = Shape(width=make.width, height=make.height, frames=count, channels=make.channels, still=still)
    _put(target, shape.pack(), 0)
    return sides


def _frames(file: IO[bytes], media_type: str, make: Make) -> Iterator[Image.Image]:
    if media_type in media.IMAGES:
        yield pictures.read(file, media_type)
    else:
        yield from clips.frames(file, make.fps, make.frames)


def _put(target: IO[bytes], data: bytes, place: int | None = None) -> None:
    try:
        if place is not None:
            target.flush()
            target.seek(place)
        target.write(data)
        if place is not None:
            target.flush()
    except OSError as error:
        raise _Unwritten(error.strerror or type(error).__name__) from error
