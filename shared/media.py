"""What an uploaded file is, from its first bytes: its format by its own marks (never by its name) and its declared size
in pixels. Nothing is decoded here; a bomb is refused before anybody unpacks it.

Sources: PNG (ISO/IEC 15948) IHDR; JPEG (ITU-T T.81) SOFn segments; WebP (RFC 9649) VP8, VP8L and VP8X chunks; MP4
(ISO/IEC 14496-12) ``ftyp``.
"""

from __future__ import annotations

from io import SEEK_CUR
from typing import IO

from msgspec import Struct

from shared.errors import InvalidRequest

MAX_PIXELS = 4096 * 4096
#: Segments before the frame header of a JPEG (colour profiles, thumbnails).
_MAX_JPEG_SEGMENTS = 512
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})

IMAGES = frozenset({"image/png", "image/jpeg", "image/webp"})
VIDEOS = frozenset({"video/mp4"})


class Media(Struct, frozen=True, kw_only=True):
    """A file's type, and its sides in pixels (0 for a video: they are not looked at here)."""

    media_type: str
    width: int = 0
    height: int = 0


def inspect(file: IO[bytes], field: str, allowed: frozenset[str] = IMAGES | VIDEOS) -> Media:
    """What the file is. Reads from its beginning and leaves it there.

    Raises:
        InvalidRequest: not of an allowed type, truncated, or of too many pixels; names ``field``.
    """
    file.seek(0)
    media_type = _type(file.read(16))
    file.seek(0)
    if media_type not in allowed:
        names = ", ".join(sorted(allowed))
        raise InvalidRequest(f"not a file of these types: {names}", field)
    try:
        width, height = _sides(file, media_type)
    except (ValueError, IndexError):
        raise InvalidRequest(f"a damaged or truncated {media_type}", field) from None
    finally:
        file.seek(0)
    if media_type in IMAGES and not (width and height):
        raise InvalidRequest(f"a damaged or truncated {media_type}", field)
    if width * height > MAX_PIXELS:
        raise InvalidRequest(f"{width}x{height} is too large; at most {MAX_PIXELS} pixels", field)
    return Media(media_type=media_type, width=width, height=height)


def _type(head: bytes) -> str:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:8] == b"ftyp":
        return "video/mp4"
    return ""


def _sides(file: IO[bytes], media_type: str) -> tuple[int, int]:
    match media_type:
        case "image/png":
            head = _exactly(file, 33)
            if head[12:16] != b"IHDR":
                raise ValueError
            return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
        case "image/jpeg":
            return _jpeg_sides(file)
        case "image/webp":
            return _webp_sides(_exactly(file, 30))
        case _:
            return 0, 0


def _jpeg_sides(file: IO[bytes]) -> tuple[int, int]:
    file.seek(2)
    for _ in range(_MAX_JPEG_SEGMENTS):
        (mark,) = _exactly(file, 1)
        if mark != 0xFF:
            raise ValueError
        while mark == 0xFF:  # fill bytes are allowed before a marker
            (mark,) = _exactly(file, 1)
        if mark in _ALONE:
            continue
        if mark in (0xD9, 0xDA):  # end of the image, or its data, before any frame header
            raise ValueError
        length = int.from_bytes(_exactly(file, 2))
        if mark in _SOF:
            frame = _exactly(file, 5)
            return int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
        if length < 2:
            raise ValueError
        file.seek(length - 2, SEEK_CUR)
    raise ValueError


def _webp_sides(head: bytes) -> tuple[int, int]:
    match head[12:16]:
        case b"VP8 ":
            if head[23:26] != b"\x9d\x01\x2a":
                raise ValueError
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
        case b"VP8L":
            if head[20] != 0x2F:
                raise ValueError
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case _:
            raise ValueError


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError
    return data
