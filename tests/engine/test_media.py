"""Pictures in and files out."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from workers.engine.errors import InputRejected, NotServed
from workers.engine.media import read_picture
from workers.engine.stages.mux import Mp4Writer, Output

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def array(path: Path, width: int, height: int) -> np.ndarray:
    picture = read_picture(path, width, height)
    return np.frombuffer(picture.rgb, np.uint8).reshape(height, width, 3)


def test_a_picture_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    np.testing.assert_array_equal(array(tmp_path / "a.png", 64, 32), np.asarray(halves()))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = halves()
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    image.save(tmp_path / "a.png", exif=exif)
    pixels = array(tmp_path / "a.png", 64, 32)
    assert tuple(pixels[16, 2]) == BLUE
    assert tuple(pixels[16, 61]) == RED


def test_the_picture_covers_the_size_and_is_cut_at_the_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 32), (0, 255, 0))
    image.paste(halves(32, 32), (32, 0))
    image.save(tmp_path / "a.png")
    pixels = array(tmp_path / "a.png", 32, 32)
    assert tuple(pixels[16, 4]) == RED
    assert tuple(pixels[16, 28]) == BLUE


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "I;16", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    image = Image.new("I;16", (32, 32), 60000) if mode == "I;16" else halves(32, 32).convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    assert array(tmp_path / f"a.{suffix}", 32, 32).shape == (32, 32, 3)


def test_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (array(tmp_path / "a.png", 16, 16) == 255).all()


def test_one_pixel_and_an_animation_are_fine(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "a.png")
    assert (array(tmp_path / "a.png", 16, 16) == RED).all()
    halves().save(tmp_path / "b.gif", save_all=True, append_images=[Image.new("RGB", (64, 32))])
    assert array(tmp_path / "b.gif", 64, 32)[16, 60, 2] > 200


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    halves().save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for name, content in {
        "empty.png": b"",
        "text.png": b"#EXTM3U\nhttp://127.0.0.1/x\n",
        "cut.png": whole[: len(whole) // 2],
        "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputRejected):
            read_picture(tmp_path / name, 32, 32)
    with pytest.raises(InputRejected):
        read_picture(tmp_path / "missing.png", 32, 32)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 20_000
    with pytest.raises(InputRejected, match="9000×9000"):
        read_picture(tmp_path / "bomb.png", 32, 32)


def test_an_mp4_says_what_it_holds(tmp_path: Path) -> None:
    output = Output(tmp_path, 0, 64, 32, 9, 8)
    for _ in range(9):
        output.write(np.asarray(halves()))
    file = output.close()
    assert (file.name, file.media_type, file.num_frames, file.fps) == ("0.mp4", "video/mp4", 9, 8)
    data = (tmp_path / "0.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "0.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        decoded = [
            frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for frame in container.decode(video=0)
        ]
    assert len(decoded) == 9
    assert np.abs(decoded[4][16, 8].astype(int) - RED).max() < 12
    assert np.abs(decoded[4][16, 56].astype(int) - BLUE).max() < 12


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotServed, match="even"):
        Mp4Writer(tmp_path / "a.mp4", 63, 32, 8)


def test_one_frame_is_a_png(tmp_path: Path) -> None:
    output = Output(tmp_path, 2, 64, 32, 1, 8)
    output.write(np.asarray(halves()))
    file = output.close()
    assert (file.name, file.media_type, file.fps) == ("2.png", "image/png", 0)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "2.png")), np.asarray(halves()))
