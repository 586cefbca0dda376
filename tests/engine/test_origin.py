"""What lies in and beside an output: where it comes from, and small pictures of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from shared.pictures import fitted, sheet_of, thumbnail_frame
from tests.engine.requests import request
from workers.engine.stages.mux import Frame, Output
from workers.engine.stages.provenance import Provenance, provenance

JOB = "0123456789abcdef0123456789abcdef"


def grey(level: int, width: int = 64, height: int = 32) -> Frame:
    return np.full((height, width, 3), level, np.uint8)


def written(
    folder: Path,
    frames: int,
    origin: Provenance | None = None,
    width: int = 64,
    height: int = 32,
    still: str = "png",
) -> Path:
    """An output whose frames go from black to white."""
    folder.mkdir(exist_ok=True)
    output = Output(folder, 0, width, height, frames, 8, origin, still)
    for number in range(frames):
        output.write(grey(number * 255 // max(1, frames - 1), width, height))
    return folder / output.close().name


# --- provenance ---------------------------------------------------------------------------------------------------


def comment_of(path: Path) -> dict[str, object]:
    """What an ordinary reader of such files shows as their comment."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            said = container.metadata["comment"]
    else:
        with Image.open(path) as picture:
            said = str(picture.info["Comment"])
    return dict(json.loads(said))


@pytest.mark.parametrize("frames", [1, 9], ids=["png", "mp4"])
def test_a_file_says_what_made_it(tmp_path: Path, frames: int) -> None:
    asked = request(num_frames=frames)
    path = written(tmp_path, frames, provenance("parameters", JOB, asked))
    said = comment_of(path)
    assert (said["job"], said["model"], said["seed"], said["steps"]) == (JOB, "tiny", 7, 3)
    assert str(said["software"]).startswith("genfleet")
    assert "prompt" not in said
    assert b"pan left" not in path.read_bytes()
    assert b"trainedAlgorithmicMedia" in path.read_bytes()


@pytest.mark.parametrize("frames", [1, 9], ids=["png", "mp4"])
def test_prompts_only_where_the_operator_wants_them(tmp_path: Path, frames: int) -> None:
    asked = request(num_frames=frames, prompt="<b>猫 & 犬</b>", negative_prompt="")
    said = comment_of(written(tmp_path, frames, provenance("full", JOB, asked)))
    assert said["prompt"] == "<b>猫 & 犬</b>"
    assert "negative_prompt" not in said


@pytest.mark.parametrize("frames", [1, 9], ids=["png", "mp4"])
def test_the_xmp_is_well_formed_and_where_readers_look(tmp_path: Path, frames: int) -> None:
    asked = request(num_frames=frames, prompt="<b>猫 & 犬</b>")
    data = written(tmp_path, frames, provenance("full", JOB, asked)).read_bytes()
    if frames > 1:  # the last box of the file: size, type, the UUID of XMP
        start = data.rindex(b"uuid") - 4
        assert start + int.from_bytes(data[start : start + 4]) == len(data)
        assert data[start + 8 : start + 24].hex() == "be7acfcb97a942e89c71999491e3afac"
    else:
        assert data.count(b"iTXtXML:com.adobe.xmp\0") == 1
    found = re.search(rb"<x:xmpmeta.*</x:xmpmeta>", data)
    assert found is not None
    packet = ElementTree.fromstring(found.group())
    source = packet.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source is not None
    assert source.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.mark.parametrize("still", ["jpeg", "webp"])
def test_other_pictures_say_it_too(tmp_path: Path, still: str) -> None:
    path = written(tmp_path, 1, provenance("full", JOB, request()), still=still)
    with Image.open(path) as picture:
        packet = bytes(picture.info["xmp"])
        assert b"trainedAlgorithmicMedia" in packet
        assert JOB.encode() in packet
        if still == "jpeg":
            assert json.loads(picture.info["comment"])["job"] == JOB
    silent = written(tmp_path, 1, provenance("off", JOB, request()), still=still)
    assert b"xmp" not in silent.read_bytes()


def test_what_does_not_fit_into_a_jpeg_ends_no_job(tmp_path: Path) -> None:
    asked = request(prompt="\u0007" * 4000, negative_prompt="\u0007" * 8000)
    path = written(tmp_path, 1, provenance("full", JOB, asked), still="jpeg")
    with Image.open(path) as picture:
        assert "xmp" not in picture.info


@pytest.mark.parametrize("frames", [1, 9], ids=["png", "mp4"])
def test_when_it_is_off_a_file_says_nothing_and_its_pixels_are_the_same(tmp_path: Path, frames: int) -> None:
    silent = written(tmp_path / "silent", frames, provenance("off", JOB, request()))
    saying = written(tmp_path / "saying", frames, provenance("full", JOB, request()))
    for word in (JOB.encode(), b"genfleet", b"xmp"):
        assert word not in silent.read_bytes()
    with av.open(str(silent)) as one, av.open(str(saying)) as other:
        pixels = [[frame.to_ndarray() for frame in container.decode(video=0)] for container in (one, other)]
    np.testing.assert_array_equal(pixels[0], pixels[1])


def test_the_same_job_gives_the_same_bytes_and_still_starts_fast(tmp_path: Path) -> None:
    origin = provenance("full", JOB, request())
    one, other = (written(tmp_path / name, 9, origin).read_bytes() for name in ("one", "other"))
    assert one == other
    assert one.index(b"moov") < one.index(b"mdat")


def opened(path: Path) -> Image.Image:
    """A JPEG."""
    with Image.open(path, formats=["JPEG"]) as picture:
        return picture.copy()


# --- small pictures ---------------------------------------------------------------------------------------------------


def test_a_video_has_a_thumbnail_of_its_middle_and_a_sheet_of_its_course(tmp_path: Path) -> None:
    written(tmp_path, 81, width=640, height=360)
    thumbnail, sheet = (opened(tmp_path / f"0.{name}.jpg") for name in ("thumbnail", "spritesheet"))
    assert thumbnail.size == (480, 270)
    assert abs(int(np.asarray(thumbnail).mean()) - 127) < 3
    said = sheet_of(640, 360, 81)
    assert sheet.size == (5 * 160, 5 * 90)
    for place, number in enumerate(said.frames):
        row, column = divmod(place, said.columns)
        tile = np.asarray(sheet)[row * 90 + 8 : row * 90 + 82, column * 160 + 8 : column * 160 + 152]
        assert abs(tile.mean() - number * 255 / 80) < 4, number


def test_a_picture_has_a_thumbnail_and_no_sheet(tmp_path: Path) -> None:
    output = Output(tmp_path, 3, 1024, 1024, 1, 8)
    output.write(grey(200, 1024, 1024))
    file = output.close()
    assert (file.thumbnail, file.spritesheet) == ("3.thumbnail.jpg", "")
    assert opened(tmp_path / "3.thumbnail.jpg").size == (480, 480)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.png", "3.thumbnail.jpg"]


def test_the_small_pictures_tell_nothing_of_where_they_come_from(tmp_path: Path) -> None:
    written(tmp_path, 9, provenance("full", JOB, request()))
    for name in ("thumbnail", "spritesheet"):
        assert JOB.encode() not in (tmp_path / f"0.{name}.jpg").read_bytes()


@pytest.mark.parametrize(
    ("num_frames", "columns", "rows"), [(2, 2, 1), (3, 2, 2), (5, 3, 2), (9, 3, 3), (17, 5, 4), (81, 5, 5), (257, 5, 5)]
)
def test_a_sheet_holds_frames_in_their_order_and_no_empty_row(num_frames: int, columns: int, rows: int) -> None:
    sheet = sheet_of(832, 480, num_frames)
    assert (sheet.columns, sheet.rows) == (columns, rows)
    assert (sheet.width, sheet.height) == (160, 92)
    assert sheet.frames[0] == 0
    assert list(sheet.frames) == sorted(set(sheet.frames))
    assert sheet.frames[-1] < num_frames
    assert columns * (rows - 1) < len(sheet.frames) <= columns * rows


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 32), (64, 32)), ((1280, 720), (480, 270)), ((10, 9000), (1, 480)), ((1, 1), (1, 1))]
)
def test_a_thumbnail_keeps_its_proportions_and_is_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fitted(*size, 480) == expected
    assert thumbnail_frame(1) == 0
