"""The small pictures that lie beside an output: a thumbnail, which is one of its frames, and of a video a sprite sheet,
many frames side by side, as players show them over the time bar. Which frames, and how large, follows from the output's
own numbers alone: those who make them and those who describe them need not tell each other. Pure."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Literal

from msgspec import Struct

from shared.messages import Output

Variant = Literal["output", "thumbnail", "spritesheet"]

#: Longer sides in pixels at most.
THUMBNAIL = 480
TILE = 160
#: Tiles of a sheet at most.
TILES = 25

#: The formats that a picture can be made in, ``image/…`` each.
STILLS = ("png", "jpeg", "webp")
#: Of a JPEG or WebP whose request says none, 0 to 100.
QUALITY = 95

_MEDIA_TYPES = {
    "mp4": "video/mp4",
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
}
_SUFFIXES = {media_type: suffix for suffix, media_type in _MEDIA_TYPES.items()}


class Sheet(Struct, frozen=True):
    """A sprite sheet: ``frames`` of the video, row by row, each scaled to ``width`` × ``height``."""

    columns: int
    rows: int
    width: int
    height: int
    frames: tuple[int, ...]


def sheet_of(width: int, height: int, num_frames: int) -> Sheet:
    """The sheet of a video of that size and length: its frames at even distances, the first among them."""
    width, height, num_frames = max(1, width), max(1, height), max(1, num_frames)
    count = min(num_frames, TILES)
    columns = ceil(sqrt(count))
    tile = fitted(width, height, TILE)
    frames = tuple(index * num_frames // count for index in range(count))
    return Sheet(columns, ceil(count / columns), *tile, frames)


def thumbnail_frame(num_frames: int) -> int:
    """Which frame stands for the video: the one in its middle, because the first of many is somebody's photograph."""
    return num_frames // 2


def fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """That size with its proportions kept and no side longer than that; never enlarged."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def keys_of(output: Output) -> tuple[str, ...]:
    """Where an output lies, and the pictures of it."""
    return tuple(key for key in (output.key, output.thumbnail, output.spritesheet) if key)


def media_type_of(key: str) -> str:
    """The media type of a file that the engine made, by its name's end."""
    return _MEDIA_TYPES.get(key.rpartition(".")[2], "application/octet-stream")


def suffix_of(media_type: str) -> str:
    """The end of the name of a file of that type, without the dot."""
    return _SUFFIXES.get(media_type, "bin")
