"""A clip: frames of exactly the size and rate asked for.

The file is opened as what its first bytes say that it is, an mp4, whatever its name or the rest of it suggest to the
library; as an open file and not as a name; and no protocol is allowed, so that nothing in it can make the library open
another (fault 20).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import av
from av.video.reformatter import Colorspace
from PIL import Image

from shared.decoding import CHECKED_FRAMES, MAX_CLIP_S, MAX_PIXELS, MAX_RATE, MAX_STREAMS
from workers.intake.pictures import Rejected

CODECS = frozenset({"h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg"})
#: The library's names of what decodes them.
_DECODERS = "h264,hevc,mpeg4,vp9,libdav1d,av1,mjpeg"
_OPTIONS = {
    "protocol_whitelist": "none",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2",
    "codec_whitelist": _DECODERS,
    "max_streams": str(MAX_STREAMS),
    "enable_drefs": "0",
    "use_absolute_path": "0",
}
#: Of a frame of the job: a frame of the clip that comes by so much later counts as shown already, because times in
#: files are rounded.
_SLACK = 0.1
#: A frame's word for a colour matrix that it does not name (ITU-T H.273).
_UNSAID = 2


def frames(file: IO[bytes], fps: int, count: int) -> Iterator[Image.Image]:
    """At each of the job's frame times what the clip shows then, in RGB, turned as it is to be shown; ``count`` frames
    or as many as the clip reaches.

    Raises:
        Rejected: it is not an mp4 with a video of a known codec, is damaged, or is beyond a limit.
    """
    with _opened(file) as (container, stream):
        yield from _sampled(container, stream, fps, count)


def check(file: IO[bytes]) -> tuple[int, int]:
    """Decode the clip's first ``CHECKED_FRAMES`` and look for the others, whether they are there; its sides in pixels.

    Raises:
        Rejected: as ``frames``, and if it has been cut off.
    """
    with _opened(file) as (container, stream):
        decoded, packets, shown = 0, 0, (0, 0)
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
            if packet.is_corrupt:
                raise Rejected("the clip is damaged or cut off")
            if decoded > CHECKED_FRAMES:
                continue
            for frame in packet.decode():
                turned = round(frame.rotation / 90) % 2
                shown = (frame.height, frame.width) if turned else (frame.width, frame.height)
                _check_pixels(*shown)
                decoded += 1
        if not decoded:
            raise Rejected("the clip has no frames")
        if packets < stream.frames:
            raise Rejected(f"the clip is cut off: {packets} of its {stream.frames} frames are there")
        return shown


@contextmanager
def _opened(file: IO[bytes]) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(file, mode="r", format="mov", options=_OPTIONS) as container:
            if not container.streams.video:
                raise Rejected("the file has no video")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec is None or codec.codec.canonical_name not in CODECS:
                raise Rejected(f"the clip's codec is none of {', '.join(sorted(CODECS))}")
            _check_pixels(codec.width, codec.height)
            if container.duration is not None and container.duration > MAX_CLIP_S * av.time_base:
                raise Rejected(f"the clip says that it is longer than {MAX_CLIP_S:g} s")
            codec.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as error:
        # The library's own text names the file where it lies here, which is nobody's business.
        why = getattr(error, "strerror", None) or type(error).__name__
        raise Rejected(f"the clip cannot be decoded: {why}") from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Rejected(f"the clip has frames of {width}×{height}; at most {MAX_PIXELS} pixels")


def _sampled(container: Any, stream: Any, fps: int, count: int) -> Iterator[Image.Image]:
    rate = float(stream.average_rate or stream.guessed_rate or fps)
    shown, first, wanted, until = None, None, 0, 0.0
    for decoded, frame in enumerate(container.decode(stream)):
        if decoded > (count / fps + 1) * MAX_RATE:
            raise Rejected(f"the clip has more than {MAX_RATE} frames a second")
        _check_pixels(frame.width, frame.height)
        at = decoded / rate if frame.time is None else frame.time
        first = at if first is None else first
        while shown is not None and wanted < count and wanted / fps < at - first - _SLACK / fps:
            yield shown
            wanted += 1
        if wanted == count:
            return
        shown = upright(frame)
        until = at - first + 1 / rate
    while shown is not None and wanted < count and wanted / fps < until - _SLACK / fps:
        yield shown
        wanted += 1
    if shown is None:
        raise Rejected("the clip has no frames")


def upright(frame: Any) -> Image.Image:
    """RGB as the frame is to be shown. A large one that does not say its colours' matrix has that of BT.709, as players
    assume."""
    matrix = Colorspace.ITU709 if frame.colorspace == _UNSAID and frame.height >= 720 else None
    picture: Image.Image = frame.reformat(format="rgb24", src_colorspace=matrix, threads=1).to_image()
    match round(frame.rotation / 90) % 4:
        case 1:
            return picture.transpose(Image.Transpose.ROTATE_90)
        case 2:
            return picture.transpose(Image.Transpose.ROTATE_180)
        case 3:
            return picture.transpose(Image.Transpose.ROTATE_270)
        case _:
            return picture
