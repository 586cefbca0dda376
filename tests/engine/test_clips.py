"""Clips in: frames at the job's times and of its size, and what is no clip is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from shared.messages import Input, IntRange, JobRequest, Task
from tests.engine.requests import request
from workers.engine import clips, inputs
from workers.engine.clips import read_clip
from workers.engine.direct import Direct
from workers.engine.errors import InputRejected
from workers.engine.media import Clip
from workers.engine.stages.mux import Mp4Writer
from workers.link import Done, Refused

Folders = Callable[[str], Path]
FRAMES = IntRange(min=1, max=81, default=17, multiple_of=4, offset=1)
CLIP = Input(key="k", media_type="video/mp4", size=1, sha256="0")


def level(index: int) -> int:
    return 20 + 12 * index


def film(path: Path, frames: int = 9, fps: int = 8, width: int = 64, height: int = 32) -> Path:
    """Grey frames that get brighter."""
    writer = Mp4Writer(path, width, height, fps)
    for index in range(frames):
        writer.write(np.full((height, width, 3), level(index), np.uint8))
    writer.close()
    return path


def levels(clip: Clip) -> list[float]:
    shown = np.frombuffer(clip.data, np.uint8).reshape(clip.frames, -1)
    return [float(frame.mean()) for frame in shown]


def near(clip: Clip, indices: Sequence[int]) -> None:
    assert levels(clip) == pytest.approx([level(index) for index in indices], abs=2.5)


def test_frames_come_as_they_are_at_their_own_rate(tmp_path: Path) -> None:
    clip = read_clip(film(tmp_path / "a.mp4"), 64, 32, 8, 81)
    assert (clip.width, clip.height, clip.frames, clip.channels) == (64, 32, 9, 3)
    near(clip, range(9))


@pytest.mark.parametrize(
    ("fps", "shown"),
    [(4, [0, 2, 4, 6, 8]), (16, [index // 2 for index in range(18)]), (12, [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8])],
)
def test_another_rate_takes_what_is_shown_at_the_time(tmp_path: Path, fps: int, shown: list[int]) -> None:
    near(read_clip(film(tmp_path / "a.mp4"), 64, 32, fps, 81), shown)


def test_no_more_frames_than_asked(tmp_path: Path) -> None:
    near(read_clip(film(tmp_path / "a.mp4"), 64, 32, 8, 5), range(5))


def test_a_frame_is_scaled_to_cover_and_cut_at_the_centre(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "a.mp4", 96, 32, 8)
    image = Image.new("RGB", (96, 32), (0, 255, 0))
    image.paste((255, 0, 0), (32, 0, 64, 32))
    writer.write(np.asarray(image))
    writer.close()
    clip = read_clip(tmp_path / "a.mp4", 64, 64, 8, 1)
    pixels = np.frombuffer(clip.data, np.uint8).reshape(64, 64, 3).astype(int)
    assert np.abs(pixels[8:56, 8:56] - (255, 0, 0)).max() < 30


def test_grey_has_one_channel(tmp_path: Path) -> None:
    clip = read_clip(film(tmp_path / "a.mp4"), 64, 32, 8, 3, grey=True)
    assert (clip.channels, len(clip.data)) == (1, 3 * 64 * 32)
    near(clip, range(3))


def test_a_clip_is_turned_as_it_is_to_be_shown(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 2)
    data = path.read_bytes()
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    assert data.count(straight) == 2  # of the film and of its track, which comes last
    cut = data.rindex(straight)
    path.write_bytes(data[:cut] + turned + data[cut + len(turned) :])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, abs(frame.rotation)) == (64, 32, 90)
        assert clips._upright(frame).shape == (64, 32, 3)


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")


def concat(path: Path) -> None:
    path.write_text("ffconcat version 1.0\nfile /etc/passwd\n")


def truncated(path: Path) -> None:
    film(path)
    path.write_bytes(path.read_bytes()[:600])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("make", [playlist, concat, truncated, empty, sound])
def test_what_is_no_clip_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(InputRejected) as caught:
        read_clip(tmp_path / "a.mp4", 64, 32, 8, 5)
    assert str(tmp_path) not in str(caught.value)


def test_a_clip_beyond_the_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4")
    monkeypatch.setattr(clips, "MAX_RATE", 1)
    with pytest.raises(InputRejected, match="frames a second"):
        read_clip(path, 64, 32, 8, 9)
    monkeypatch.setattr(clips, "MAX_PIXELS", 64 * 32 - 1)
    with pytest.raises(InputRejected, match="64×32"):
        read_clip(path, 64, 32, 8, 9)
    monkeypatch.setattr(clips, "CODECS", frozenset({"av1"}))
    with pytest.raises(InputRejected, match="codec"):
        read_clip(path, 64, 32, 8, 9)


def editing(**changes: object) -> JobRequest:
    return request(task=Task.VIDEO_EDITING, width=64, height=32, num_frames=17, fps=8, video=CLIP, **changes)


def test_a_job_has_no_more_frames_than_its_clip(tmp_path: Path) -> None:
    paths = {"video": str(film(tmp_path / "a.mp4", 11))}
    made = inputs.read(editing(), paths, FRAMES)
    assert (made.request.num_frames, made.clips["video"].frames) == (9, 9)
    near(made.clips["video"], range(9))
    with pytest.raises(InputRejected, match="video: the clip has 11 frames, fewer"):
        inputs.read(editing(), paths, IntRange(min=17, max=81, default=81, multiple_of=4, offset=1))


def test_a_mask_is_a_clip_as_long_as_the_job_or_one_picture(tmp_path: Path) -> None:
    paths = {"video": str(film(tmp_path / "a.mp4")), "mask": str(film(tmp_path / "m.mp4", 8))}
    with pytest.raises(InputRejected, match="mask: has 8 frames at 8 fps, the job has 9"):
        inputs.read(editing(mask=CLIP), paths, FRAMES)
    paths["mask"] = str(film(tmp_path / "n.mp4", 12))
    assert inputs.read(editing(mask=CLIP), paths, FRAMES).clips["mask"].channels == 1
    Image.new("RGB", (10, 10), (255, 255, 255)).save(tmp_path / "m.png")
    # Of a mask by URL nothing is known before.
    by_url = Input(url="https://example.com/m")
    mask = inputs.read(editing(mask=by_url), paths | {"mask": str(tmp_path / "m.png")}, FRAMES).clips["mask"]
    assert (mask.frames, mask.channels, set(mask.data)) == (1, 1, {255})
    (tmp_path / "m.txt").write_text("no mask")
    with pytest.raises(InputRejected, match="mask: not a file of these types"):
        inputs.read(editing(mask=by_url), paths | {"mask": str(tmp_path / "m.txt")}, FRAMES)


def test_references_are_shown_whole(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "r.png")
    given = Input(key="k", media_type="image/png", size=1, sha256="0")
    asked = editing(references=(given,))
    paths = {"video": str(film(tmp_path / "a.mp4")), "references.0": str(tmp_path / "r.png")}
    picture = inputs.read(asked, paths, FRAMES).pictures["references.0"]
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(32, 64, 3)
    assert (pixels[:, :16] == 255).all()
    assert (pixels[:, 16:48] == (255, 0, 0)).all()
    with pytest.raises(InputRejected, match=r"references\.0: not delivered"):
        inputs.read(asked, {"video": paths["video"]}, FRAMES)


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
