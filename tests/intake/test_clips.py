"""Clips in: frames at the job's times and of its size, and what is no clip is refused."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from shared.decoding import How, Make
from shared.errors import InvalidRequest
from shared.intake import Intake, Rejected
from shared.media import VIDEOS
from tests.support.films import film, near
from tests.support.framed import read_clip
from tests.support.http_server import said, server
from workers.engine.stages.mux import Mp4Writer
from workers.intake import clips
from workers.intake.pictures import Rejected as Refused


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
        assert clips.upright(frame).size == (32, 64)


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
    """Row 20 of the faults: a playlist named ``.mp4``, and nothing of what it names is opened."""
    make(tmp_path / "a.mp4")
    with pytest.raises((Refused, InvalidRequest)) as caught:
        read_clip(tmp_path / "a.mp4", 64, 32, 8, 5)
    assert str(tmp_path) not in str(caught.value)


def test_a_clip_beyond_the_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mp4")
    monkeypatch.setattr(clips, "MAX_RATE", 1)
    with pytest.raises(Refused, match="frames a second"):
        read_clip(path, 64, 32, 8, 9)
    monkeypatch.setattr(clips, "MAX_PIXELS", 64 * 32 - 1)
    with pytest.raises(Refused, match="64×32"):
        read_clip(path, 64, 32, 8, 9)
    monkeypatch.setattr(clips, "CODECS", frozenset({"av1"}))
    with pytest.raises(Refused, match="codec"):
        read_clip(path, 64, 32, 8, 9)


def with_a_head(path: Path, text: str) -> None:
    """What a player of playlists would still read, behind the mark of an mp4."""
    path.write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + text.encode())


def with_a_reference(path: Path, text: str) -> None:
    """An mp4 whose samples are said to lie elsewhere (ISO/IEC 14496-12, ``dref``)."""
    film(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"url \0\0\0\1")
    # "alis", the older kind, is what the library follows where it may; not in this file, says the flag.
    data[at : at + 8] = b"alis\0\0\0\0"
    path.write_bytes(bytes(data) + text.encode())


ELSEWHERE = (
    "#EXTM3U\n#EXTINF:1,\n{url}/x.ts\n",
    "ffconcat version 1.0\nfile {url}/x.mp4\n",
    "ffconcat version 1.0\nfile /etc/passwd\n",
    "<MPD><Period><AdaptationSet><BaseURL>{url}/</BaseURL></AdaptationSet></Period></MPD>",
    "{url}/x.mp4",
)


@pytest.mark.parametrize("make", [with_a_head, with_a_reference, lambda path, text: path.write_text(text)])
async def test_nothing_in_a_clip_makes_anything_be_fetched(tmp_path: Path, make: Callable[[Path, str], None]) -> None:
    """Row 20 of the faults: playlists of every kind, whatever they are called, and references to other files."""
    wanted = Make(how=How.COVER, width=64, height=32, frames=3, fps=8)
    source, into = tmp_path / "a.mp4", tmp_path / "f"
    intake = Intake()
    async with server(lambda _: said(b"")) as (url, seen):
        for text in ELSEWHERE:
            await asyncio.to_thread(make, source, text.format(url=url))
            with suppress(Rejected):
                await intake.check(source, "video", VIDEOS)
            with suppress(Rejected):
                await intake.make(source, into, "video", VIDEOS, wanted)
                assert make is with_a_reference  # which is not followed: the frames are those of the file itself
        await intake.close()
        assert seen == []


def test_no_protocol_is_left_to_the_library(tmp_path: Path) -> None:
    """Were a name to reach it, it could not open it."""
    with pytest.raises(av.FFmpegError):
        av.open(str(film(tmp_path / "a.mp4")), options=dict(clips._OPTIONS))
