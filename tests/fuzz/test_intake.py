"""Whatever bytes come as a form, a picture or a clip: they are taken, or refused in a sentence; nothing else ends."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.problems import Problem
from gateway.uploads import AnyRequest, Form, from_data_uri, read_form
from shared.decoding import How, Limits, Make, NotFrames, shape_of
from shared.errors import InvalidRequest
from shared.intake import Intake, Rejected
from shared.media import IMAGES, VIDEOS, inspect
from shared.settings import Settings
from tests.fuzz.bounds import bounded
from tests.support.films import film
from tests.support.gateway import png

T = TypeVar("T")
FILES = frozenset({"image", "references"})
SEVERAL = {"references": 3}
LIMIT = 100_000
MAKE = Make(how=How.COVER, width=32, height=16, frames=3, fps=8)


# --- forms ---------------------------------------------------------------------------------------------------------


class Sent:
    """A request with that body, in those pieces."""

    def __init__(self, pieces: list[bytes], boundary: str) -> None:
        self._pieces = pieces
        self.headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        self.app = SimpleNamespace(state=SimpleNamespace(gateway=SimpleNamespace(settings=Settings())))

    async def stream(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def read(pieces: list[bytes], boundary: str = "b") -> dict[str, str] | str:
    """What became of the form: its fields, and its files by their hashes, or how it was refused."""
    with ExitStack() as stack:
        try:
            request = cast("AnyRequest", Sent(pieces, boundary))
            form: Form = asyncio.run(read_form(request, LIMIT, FILES, stack, SEVERAL))
        except Problem as problem:
            refusal: Problem | InvalidRequest = problem
        except InvalidRequest as error:
            refusal = error
        else:
            return taken(form)
    status = refusal.status if isinstance(refusal, Problem) else 422
    assert status in (400, 413, 422)
    assert str(refusal)
    return str(status)


def taken(form: Form) -> dict[str, str]:
    """The fields, and the files by their hashes."""
    for upload in form.files.values():
        assert upload.path.stat().st_size == upload.size
    assert set(form.files) <= {"image", "references.0", "references.1", "references.2"}
    return form.fields | {name: upload.sha256 for name, upload in form.files.items()}


NAMES = st.sampled_from(["prompt", "image", "references", "", "a" * 300, 'x"; filename="y', "\r\nX: y", "é", "\0"])
CONTENTS = st.one_of(
    st.sampled_from([png(), png()[:30], b"", b"a cat", b"\xff\xfe", b"--b", b"\r\n--b\r\n", b"x" * 2000]),
    st.binary(max_size=200),
)


@st.composite
def parts(draw: st.DrawFn) -> bytes:
    """A part that is one, more or less."""
    name, content = draw(NAMES), draw(CONTENTS)
    file = draw(
        st.sampled_from(["", '; filename="a.png"', "; filename*=UTF-8''a.png", '; filename="../../etc/passwd"'])
    )
    more = draw(
        st.sampled_from(["", "Content-Type: image/png\r\n", "Content-Length: 5\r\n", "X: " + "y" * 500 + "\r\n"])
    )
    head = f'Content-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'
    return b"--b\r\n" + head.encode() + content + b"\r\n"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A form, whole or spoiled."""
    body = b"".join(draw(st.lists(parts(), max_size=5))) + draw(st.sampled_from([b"--b--\r\n", b"--b--", b"", b"--b"]))
    return draw(spoiled(body)) if draw(st.booleans()) else body


def spoiled(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a few of them changed, cut out or doubled."""

    @st.composite
    def change(draw: st.DrawFn) -> bytes:
        made = bytearray(data)
        for _ in range(draw(st.integers(1, 6))):
            if not made:
                break
            at = draw(st.integers(0, len(made) - 1))
            match draw(st.sampled_from(["flip", "cut", "double", "put", "end"])):
                case "flip":
                    made[at] ^= 1 << draw(st.integers(0, 7))
                case "cut":
                    del made[at : at + draw(st.integers(1, 40))]
                case "double":
                    made[at:at] = made[at : at + draw(st.integers(1, 40))]
                case "put":
                    made[at:at] = draw(st.binary(min_size=1, max_size=8))
                case _:
                    del made[at:]
        return bytes(made)

    return change()


@bounded(150)
@given(body=bodies(), cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_a_form_is_read_or_refused_however_it_is_cut(body: bytes, cuts: list[int]) -> None:
    """The pieces in which it comes over the network change nothing."""
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[first:last] for first, last in pairwise(places)]
    assert read(pieces) == read([body])


@bounded(100)
@given(body=st.binary(max_size=400), boundary=st.text(max_size=80))
def test_bytes_that_are_no_form_are_refused(body: bytes, boundary: str) -> None:
    read([body], boundary)


@bounded(100)
@given(uri=st.one_of(st.text(max_size=100), st.text(max_size=60).map("data:image/png;base64,".__add__)))
def test_a_data_uri_is_taken_or_refused(uri: str) -> None:
    with ExitStack() as stack, pytest.raises(InvalidRequest):
        from_data_uri(uri, "image", stack)


# --- what files are ------------------------------------------------------------------------------------------------


def _encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 30).convert(mode).save(file, kind, **options)
    return file.getvalue()


EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
PICTURES = [
    _encoded("PNG", "RGBA"),
    _encoded("PNG", "P", transparency=0),
    _encoded("PNG", "I;16"),
    _encoded("JPEG", "RGB", exif=EXIF),
    _encoded("JPEG", "CMYK", progressive=True),
    _encoded("WEBP", "RGBA", exif=EXIF),
    _encoded("WEBP", "RGB", lossless=True),
]


@bounded(300)
@given(data=st.one_of(st.binary(max_size=100), st.sampled_from(PICTURES).flatmap(spoiled)))
def test_a_files_head_is_read_or_refused(data: bytes) -> None:
    file = io.BytesIO(data)
    with suppress(InvalidRequest):
        assert inspect(file, "image").media_type in IMAGES | VIDEOS
    assert file.tell() == 0


@bounded(200)
@given(data=st.binary(max_size=100))
def test_bytes_are_hardly_frames(data: bytes) -> None:
    with pytest.raises(NotFrames):
        shape_of(data, len(data), MAKE)


# --- what decodes them ---------------------------------------------------------------------------------------------


class Decoder:
    """A real process and its children, asked one after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._intake = Intake(limits=Limits(cpu_s=5, wall_s=60.0, memory=512 * 1024 * 1024))
        self._run(self._intake.start())
        assert self._intake._process is not None
        self._pid = self._intake._process.pid

    def _run(self, asked: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asked)

    def decide(self, data: bytes) -> bool:
        """Whether the file was taken, which its frames show, or refused in a sentence."""
        source, into = self._folder / "source", self._folder / "frames"
        source.write_bytes(data)
        try:
            shape = self._run(self._intake.make(source, into, "image", IMAGES | VIDEOS, MAKE))
            self._run(self._intake.check(source, "image", IMAGES | VIDEOS))
        except Rejected as error:
            text = str(error)
            assert text
            assert "crashed" not in text
            assert "Error" not in text or "cannot be decoded" in text
            assert str(self._folder) not in text
            return False
        assert 1 <= shape.frames <= MAKE.frames
        return True

    def close(self) -> None:
        """End, and see that it was the same process all the time."""
        assert self._intake._process is not None
        assert self._intake._process.pid == self._pid
        self._run(self._intake.close())
        self._loop.close()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    made = Decoder(tmp_path_factory.mktemp("intake"))
    yield made
    made.close()


@bounded(60)
@given(data=st.sampled_from(PICTURES).flatmap(spoiled))
def test_a_spoiled_picture_is_taken_or_refused(decoder: Decoder, data: bytes) -> None:
    decoder.decide(data)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return film(tmp_path_factory.mktemp("clip") / "a.mp4", 5).read_bytes()


@bounded(60)
@given(choice=st.data())
def test_a_spoiled_clip_is_taken_or_refused(decoder: Decoder, clip: bytes, choice: st.DataObject) -> None:
    decoder.decide(choice.draw(spoiled(clip)))


def test_what_is_not_spoiled_is_taken(decoder: Decoder, clip: bytes) -> None:
    assert [decoder.decide(data) for data in (*PICTURES, clip)] == [True] * 8
