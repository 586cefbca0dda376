"""Everything once with files of our own making, before the first child: libraries load parts of themselves only when
they are needed, and inside of the sandbox that is too late. Children then share what is loaded."""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
from PIL import Image, ImageCms

from shared.decoding import Ask, How, Limits, Make
from shared.media import IMAGES, VIDEOS
from workers.intake import work

_SIDE = 32
_ORIENTATION = 0x0112


def rehearse() -> None:
    """Decode a small file of each kind, whole and cut off."""
    make = Make(how=How.COVER, width=16, height=16, frames=2, fps=8)
    for data in (*_pictures(), _clip()):
        for cut in (len(data), len(data) * 2 // 3):
            for made in (None, make):
                ask = Ask(field="", allowed=tuple(IMAGES | VIDEOS), make=made, limits=Limits())
                verdict = work.answer(ask, io.BytesIO(data[:cut]), io.BytesIO())
                assert cut < len(data) or not verdict.refused, verdict


def _pictures() -> Iterator[bytes]:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for kind, mode in (("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("JPEG", "RGB"), ("WEBP", "RGBA")):
        file = io.BytesIO()
        Image.new(mode, (_SIDE, _SIDE)).save(file, kind, exif=exif, icc_profile=profile)
        yield file.getvalue()


def _clip() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(_SIDE, _SIDE, "yuv420p")))
        container.mux(stream.encode())
    return file.getvalue()
