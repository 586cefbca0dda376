"""Pictures in: row 19 of the faults, and colours as they are meant."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from shared.decoding import How
from shared.errors import InvalidRequest
from tests.support.framed import read_picture, read_reference
from workers.intake import pictures
from workers.intake.pictures import Rejected

RED, BLUE = (255, 0, 0), (0, 0, 255)
ORIENTATION = 0x0112


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def array(path: Path, width: int, height: int) -> np.ndarray:
    picture = read_picture(path, width, height)
    return np.frombuffer(picture.rgb, np.uint8).reshape(height, width, 3)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_a_picture_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    np.testing.assert_array_equal(array(saved(halves(), tmp_path / "a.png"), 64, 32), np.asarray(halves()))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    """A red corner ends where EXIF says (CIPA DC-008: what row 0 and column 0 of the stored picture are)."""
    image = Image.new("RGB", (64, 64))
    image.paste(RED, (0, 0, 24, 24))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = array(saved(image, tmp_path / f"a.{suffix}", exif=exif), 64, 64).astype(int)
    corners = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    for corner in ((0, 0), (0, 1), (1, 1), (1, 0)):
        red = pixels[8 + 48 * corner[0], 8 + 48 * corner[1], 0]
        assert (red > 200) == (corner == corners[orientation]), (corner, red)


def test_sides_are_swapped_before_the_picture_is_fitted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be shown turned by 90° clockwise: what was left is above
    pixels = array(saved(halves(64, 32), tmp_path / "a.png", exif=exif), 32, 64)
    assert tuple(pixels[4, 16]) == RED
    assert tuple(pixels[60, 16]) == BLUE


def test_the_picture_covers_the_size_and_is_cut_at_the_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), (0, 255, 0))
    image.paste(halves(32, 32), (32, 0))
    pixels = array(saved(image, tmp_path / "a.png"), 32, 32)
    assert tuple(pixels[16, 4]) == RED
    assert tuple(pixels[16, 28]) == BLUE


def test_a_reference_is_whole_within_white(tmp_path: Path) -> None:
    picture = read_reference(saved(halves(32, 32), tmp_path / "a.png"), 64, 32)
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(32, 64, 3)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 48:] == 255).all()
    assert tuple(pixels[16, 20]) == RED


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "PA", "RGBA"])
def test_every_mode_becomes_the_same_rgb(tmp_path: Path, mode: str) -> None:
    image = halves(32, 32).convert("L") if mode in ("L", "LA", "1") else halves(32, 32)
    path = tmp_path / "a.png"
    if mode == "PA":
        made = image.convert("P")
        made.save(path, transparency=255)
    else:
        saved(image.convert(mode), path)
    expected = image.convert("1").convert("RGB") if mode == "1" else image.convert("RGB")
    np.testing.assert_array_equal(array(path, 32, 32), np.asarray(expected))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(halves(32, 32).convert("CMYK"), tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(array(path, 32, 32).astype(int), np.asarray(halves(32, 32)).astype(int), atol=20)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 255, 256, 511, 32768, 65535]], np.uint16).repeat(6, axis=0)
    path = saved(Image.fromarray(levels), tmp_path / "a.png")
    assert array(path, 6, 6)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_what_is_transparent_lies_over_white(tmp_path: Path) -> None:
    clear = saved(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), tmp_path / "a.png")
    assert (array(clear, 16, 16) == 255).all()
    half = saved(Image.new("RGBA", (16, 16), (255, 0, 0, 128)), tmp_path / "b.png")
    np.testing.assert_allclose(array(half, 16, 16)[0, 0].astype(int), (255, 127, 127), atol=1)
    keyed = saved(halves(16, 16).convert("P", palette=Image.Palette.ADAPTIVE, colors=2), tmp_path / "c.png")
    assert (array(keyed, 16, 16) != 255).any()
    saved(Image.open(keyed), tmp_path / "c.png", transparency=bytes(2))
    assert (array(keyed, 16, 16) == 255).all()


# --- colour profiles -----------------------------------------------------------------------------------------------


def linear_profile() -> bytes:
    """sRGB's colours with a gamma of 1: a picture of it is much lighter than its numbers look.

    Made from the library's own sRGB profile by putting the curve of no change (ICC.1, ``curv`` of no entries) in the
    place of its tone curves.
    """
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132])
    for entry in range(132, 132 + 12 * count, 12):
        name, at = bytes(data[entry : entry + 4]), int.from_bytes(data[entry + 4 : entry + 8])
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            data[at : at + 12] = b"curv" + bytes(8)
        if name == b"desc":
            text = bytes(data[at : at + int.from_bytes(data[entry + 8 : entry + 12])])
            for order in ("utf-16-be", "utf-16-le"):
                text = text.replace("sRGB".encode(order), "line".encode(order))
            data[at : at + len(text)] = text
    return bytes(data)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_an_embedded_profile_is_converted(tmp_path: Path, suffix: str, mode: str) -> None:
    """Half of the light is 188 of 255 in sRGB (IEC 61966-2-1)."""
    if (suffix, mode) in (("jpg", "RGBA"), ("jpg", "P"), ("webp", "P")):
        mode = "RGB"
    image = Image.new("RGB", (16, 16), (128, 128, 128)).convert(mode, palette=Image.Palette.ADAPTIVE)
    path = saved(image, tmp_path / f"a.{suffix}", icc_profile=linear_profile())
    np.testing.assert_allclose(array(path, 16, 16)[8, 8].astype(int), (188, 188, 188), atol=3)


@pytest.mark.parametrize(
    "profile",
    [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile", bytes(200),
     ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()],
)  # fmt: skip
def test_srgb_and_what_is_no_profile_change_nothing(tmp_path: Path, profile: bytes) -> None:
    path = saved(halves(), tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(array(path, 64, 32), np.asarray(halves()))


# --- what is not taken ---------------------------------------------------------------------------------------------


def test_one_pixel_is_fine(tmp_path: Path) -> None:
    assert (array(saved(Image.new("RGB", (1, 1), RED), tmp_path / "a.png"), 16, 16) == RED).all()


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    halves().save(path, save_all=True, append_images=[Image.new("RGB", (64, 32))], lossless=True)
    np.testing.assert_array_equal(array(path, 64, 32), np.asarray(halves()))


def test_the_name_says_nothing(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(array(tmp_path / "a.jpg", 64, 32), np.asarray(halves()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_what_is_cut_off_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, kind)
    (tmp_path / "a").write_bytes(file.getvalue()[: int(len(file.getvalue()) * share)])
    with pytest.raises((Rejected, InvalidRequest), match="damaged or truncated"):
        array(tmp_path / "a", 32, 32)


@pytest.mark.parametrize(
    "content",
    [b"", b"#EXTM3U\nhttp://127.0.0.1/x\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
     b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", b"GIF89a\x01\0\x01\0", b"BM" + bytes(60),
     b"II*\0" + bytes(60)],
)  # fmt: skip
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InvalidRequest, match="not a file of these types"):
        array(tmp_path / "a.png", 32, 32)


@pytest.mark.parametrize("side", [9000, 13000])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 30_000
    with pytest.raises(InvalidRequest, match=f"{side}x{side}"):
        read_picture(tmp_path / "bomb.png", 32, 32)
    # And by the decoder's own word, should the two not agree about the size.
    with (tmp_path / "bomb.png").open("rb") as file, pytest.raises(Rejected, match=f"{side}×{side}"):
        pictures.read(file, "image/png")


def test_a_bomb_in_a_comment_is_refused(tmp_path: Path) -> None:
    """A PNG's compressed texts and profiles unpack to what they like."""
    data = saved(halves(), tmp_path / "a.png").read_bytes()
    body = b"a\0\0" + zlib.compress(bytes(80_000_000), 9)
    bomb = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    (tmp_path / "bomb.png").write_bytes(data[:33] + bomb * 4 + data[33:])
    with pytest.raises(Rejected, match="damaged or truncated image/png"):
        array(tmp_path / "bomb.png", 64, 32)


def test_a_mask_has_one_channel(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (64, 32), (255, 255, 255)), tmp_path / "a.png")
    assert read_picture(path, 64, 32, How.GREY).rgb == b"\xff" * 64 * 32
