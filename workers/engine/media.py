"""Pictures and clips, as frames of RGB or brightness. Nothing is decoded here: see ``workers/intake``."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from PIL import Image

from shared.decoding import HEADER_SIZE, Make, NotFrames, shape_of
from workers.engine.errors import InputRejected


class Picture(Struct, frozen=True):
    """A picture as it travels between ranks: ``rgb`` holds height × width × 3 bytes."""

    width: int
    height: int
    rgb: bytes

    def grey(self) -> bytes:
        """Its brightness, height × width bytes."""
        return Image.frombytes("RGB", (self.width, self.height), self.rgb).convert("L").tobytes()


class Clip(Struct, frozen=True):
    """Frames as they travel between ranks: ``data`` holds frames × height × width × channels bytes."""

    width: int
    height: int
    frames: int
    data: bytes
    channels: int = 3


class Frames(Struct, frozen=True):
    """What became of an input: ``data`` holds frames × height × width × channels bytes; ``still``: of a picture."""

    width: int
    height: int
    frames: int
    channels: int
    data: bytes
    still: bool

    def clip(self) -> Clip:
        """They, as a clip."""
        return Clip(self.width, self.height, self.frames, self.data, self.channels)

    def picture(self) -> Picture:
        """The first of them."""
        return Picture(self.width, self.height, self.data[: self.width * self.height * 3])


def read_frames(path: Path, make: Make) -> Frames:
    """The frames that intake made so.

    Raises:
        InputRejected: they are not there, or are others.
    """
    try:
        with path.open("rb") as file:
            data = file.read(make.max_bytes + 1)
        shape = shape_of(data, len(data), make)
    except (OSError, NotFrames) as error:
        raise InputRejected("not delivered as frames") from error
    return Frames(shape.width, shape.height, shape.frames, shape.channels, data[HEADER_SIZE:], shape.still)
