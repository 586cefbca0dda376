"""A job's inputs as the engine reads them: frames that intake made, and what the job becomes by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.messages import Input, IntRange, JobRequest, Task
from tests.engine.requests import image_request, picture, request
from tests.support.films import film, near
from tests.support.framed import framed
from workers.engine import inputs
from workers.engine.direct import Direct
from workers.engine.errors import InputRejected
from workers.link import Done, Refused

Folders = Callable[[str], Path]
FRAMES = IntRange(min=1, max=81, default=17, multiple_of=4, offset=1)
CLIP = Input(key="k", media_type="video/mp4", size=1, sha256="0")


def read(asked: JobRequest, paths: dict[str, str], allowed: IntRange = FRAMES) -> inputs.Inputs:
    return inputs.read(asked, framed(asked, paths), allowed)


def editing(**changes: object) -> JobRequest:
    return request(task=Task.VIDEO_EDITING, width=64, height=32, num_frames=17, fps=8, video=CLIP, **changes)


def test_a_job_has_no_more_frames_than_its_clip(tmp_path: Path) -> None:
    paths = {"video": str(film(tmp_path / "a.mp4", 11))}
    made = read(editing(), paths, FRAMES)
    assert (made.request.num_frames, made.clips["video"].frames) == (9, 9)
    near(made.clips["video"], range(9))
    with pytest.raises(InputRejected, match="video: the clip has 11 frames, fewer"):
        read(editing(), paths, IntRange(min=17, max=81, default=81, multiple_of=4, offset=1))


def test_a_mask_is_a_clip_as_long_as_the_job_or_one_picture(tmp_path: Path) -> None:
    paths = {"video": str(film(tmp_path / "a.mp4")), "mask": str(film(tmp_path / "m.mp4", 8))}
    with pytest.raises(InputRejected, match="mask: has 8 frames at 8 fps, the job has 9"):
        read(editing(mask=CLIP), paths, FRAMES)
    paths["mask"] = str(film(tmp_path / "n.mp4", 12))
    assert read(editing(mask=CLIP), paths, FRAMES).clips["mask"].channels == 1
    Image.new("RGB", (10, 10), (255, 255, 255)).save(tmp_path / "m.png")
    # Of a mask by URL nothing is known before.
    by_url = Input(url="https://example.com/m")
    mask = read(editing(mask=by_url), paths | {"mask": str(tmp_path / "m.png")}, FRAMES).clips["mask"]
    assert (mask.frames, mask.channels, set(mask.data)) == (1, 1, {255})


def test_references_are_shown_whole(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "r.png")
    given = Input(key="k", media_type="image/png", size=1, sha256="0")
    asked = editing(references=(given,))
    paths = {"video": str(film(tmp_path / "a.mp4")), "references.0": str(tmp_path / "r.png")}
    picture = read(asked, paths, FRAMES).pictures["references.0"]
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(32, 64, 3)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:48] == (255, 0, 0)).all()
    with pytest.raises(InputRejected, match=r"references\.0: not delivered"):
        read(asked, {"video": paths["video"]}, FRAMES)


def test_a_job_reports_the_frames_it_made(checkpoints: Folders, tmp_path: Path) -> None:
    model = Direct(checkpoints("wan21-t2v"))
    asked = request(task=Task.VIDEO_TO_VIDEO, video=CLIP, num_frames=9, width=64, height=32, strength=0.5, steps=2)
    out = tmp_path / "out"
    out.mkdir()
    done = model.run(asked, {"video": film(tmp_path / "a.mp4", 6)}, out)
    assert isinstance(done, Done)
    assert done.used["num_frames"] == done.files[0].num_frames == 5
    assert done.used["first_step"] == 1
    refused = model.run(asked, {"video": tmp_path / "none.mp4"}, out)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.message[:7]) == ("input_rejected", "video: ")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" + data[1:],
        lambda data: data[:8] + (256).to_bytes(4, "little") + data[12:],
        lambda data: data[:16] + (9).to_bytes(4, "little") + data[20:],
        lambda data: (b"\x89PNG\r\n\x1a\n" + data)[: len(data)],
    ],
)
def test_what_is_no_file_of_the_frames_asked_for_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Whoever wrote it may have been taken over by what it decoded."""
    asked = image_request()
    paths = framed(asked, {"image": str(picture(tmp_path))})
    file = Path(paths["image"])
    assert inputs.read(asked, paths, FRAMES).pictures["image"].width == asked.width
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputRejected, match="image: not delivered as frames"):
        inputs.read(asked, paths, FRAMES)
