"""Files out."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from workers.engine.errors import NotServed
from workers.engine.stages.mux import Mp4Writer, Output

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


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


@pytest.mark.parametrize(("still", "name"), [("jpeg", "2.jpg"), ("webp", "2.webp")])
def test_one_frame_takes_less_room_where_less_is_asked_for(tmp_path: Path, still: str, name: str) -> None:
    sizes = []
    grain = np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8)
    for quality in (0, 60, None, 100):
        output = Output(tmp_path, 2, 64, 32, 1, 8, still=still, quality=quality)
        output.write(grain)
        file = output.close()
        assert (file.name, file.media_type, file.thumbnail) == (name, f"image/{still}", "2.thumbnail.jpg")
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size, picture.mode) == (still.upper(), (64, 32), "RGB")
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes == sorted(set(sizes))


def test_colours_stay_where_they_are(tmp_path: Path) -> None:
    """At full resolution, not a pixel aside as with what is usual in JPEG."""
    output = Output(tmp_path, 0, 64, 32, 1, 8, still="jpeg")
    output.write(np.asarray(halves()))
    output.close()
    made = np.asarray(Image.open(tmp_path / "0.jpg")).astype(int)
    assert np.abs(made - np.asarray(halves())).max() < 12
