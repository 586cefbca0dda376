"""What a file is by its first bytes, and which part of one a client gets."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from gateway import ranges
from shared.errors import InvalidRequest
from shared.media import IMAGES, inspect
from tests.support.gateway import png


def _encoded(kind: str, size: tuple[int, int], mode: str = "RGB", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        (_encoded("PNG", (37, 21)), "image/png"),
        (_encoded("JPEG", (37, 21)), "image/jpeg"),
        (_encoded("JPEG", (37, 21), progressive=True), "image/jpeg"),
        (_encoded("JPEG", (37, 21), mode="CMYK"), "image/jpeg"),
        (_encoded("JPEG", (37, 21), icc_profile=b"x" * 200_000), "image/jpeg"),
        (_encoded("WEBP", (37, 21)), "image/webp"),
        (_encoded("WEBP", (37, 21), lossless=True), "image/webp"),
        (_encoded("WEBP", (37, 21), mode="RGBA", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"), "image/webp"),
    ],
)
def test_the_sides_are_read_without_decoding(file: io.BytesIO, media_type: str) -> None:
    media = inspect(file, "image")
    assert (media.media_type, media.width, media.height) == (media_type, 37, 21)
    assert file.tell() == 0


def test_too_many_pixels_are_refused_before_decoding() -> None:
    """Row 19: an image of 9000×9000 in a few bytes."""
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", 9000, 9000)
    with pytest.raises(InvalidRequest, match="9000x9000 is too large") as caught:
        inspect(io.BytesIO(bytes(bomb)), "image")
    assert caught.value.field == "image"


def test_an_mp4_is_known_by_its_first_box() -> None:
    assert inspect(io.BytesIO(b"\0\0\0\x18ftypisom" + b"\0" * 16), "video").media_type == "video/mp4"
    with pytest.raises(InvalidRequest, match="not a file of these types: image/jpeg, image/png, image/webp"):
        inspect(io.BytesIO(b"\0\0\0\x18ftypisom" + b"\0" * 16), "image", IMAGES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\nhttp://127.0.0.1/",
        b"GIF89a\x01\0\x01\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        png()[:20],
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xda\0\x02",
        b"\xff\xd8\xff\xe0\0\0\0\0\0",
        b"\xff\xd8" + b"\xff\xe0\0\x02" * 600,
        b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 20,
        b"RIFF\0\0\0\0WEBPVP8L" + b"\0" * 20,
        b"RIFF\0\0\0\0WEBPABCD" + b"\0" * 20,
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 30,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 30,
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        inspect(io.BytesIO(data), "image")


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("", None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes=1-2", (1, 3)),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_ranges(header: str | None, part: tuple[int, int] | None) -> None:
    assert ranges.parse(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_ranges_outside_the_file(header: str) -> None:
    with pytest.raises(ranges.Unsatisfiable):
        ranges.parse(header, 10)


@pytest.mark.parametrize(
    ("header", "weak", "strong"),
    [('"a"', True, True), ('W/"a"', True, False), ('"b", "a"', True, True), ("*", True, True), ('"b"', False, False)],
)
def test_entity_tags(header: str, weak: bool, strong: bool) -> None:
    assert ranges.matches(header, '"a"', weak=True) is weak
    assert ranges.matches(header, '"a"', weak=False) is strong
