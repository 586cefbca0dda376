"""Clips in: what a user sent → frames of exactly the job's size, at the job's frames per second.

The file is opened as what it was taken for at submit, an mp4, whatever its name or its first bytes suggest to the
library; and as an open file, not as a name, so that nothing in it can make the library open another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image, ImageOps

from workers.engine.errors import InputRejected
from workers.engine.media import Clip

#: Pixels of a frame above which a clip is refused before it is decoded.
MAX_PIXELS = 4096 * 4096
#: Frames per second of a clip above which it is refused.
MAX_RATE = 240
CODECS = frozenset({"h264", "hevc", "mpeg4", "vp9", "av1", "mjpeg"})
#: Of a frame of the job: a frame of the clip that comes by so much later counts as shown already, because times in
#: files are rounded.
_SLACK = 0.1
#: A frame's word for a colour matrix that it does not name (ITU-T H.273).
_UNSAID = 2


def read_clip(path: Path, width: int, height: int, fps: int, frames: int, *, grey: bool = False) -> Clip:
    """The clip's first ``frames`` frames at ``fps``, or as many as it has: at each of the job's frame times what the
    clip shows then, turned as it is to be shown, scaled to cover ``width`` × ``height`` and cut at the centre.

    Args:
        grey: one channel of brightness instead of red, green and blue.

    Raises:
        InputRejected: it is not an mp4 with a video of a known codec, is damaged, or is beyond a limit.
    """
    data, count = bytearray(), 0
    try:
        with path.open("rb") as file, av.open(file, mode="r", format="mov") as container:
            for frame in _sampled(container, fps, frames):
                picture = Image.fromarray(frame)
                fitted = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))
                data += (fitted.convert("L") if grey else fitted).tobytes()
                count += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        # The library's own text names the file where it lies here, which is nobody's business.
        why = getattr(error, "strerror", None) or type(error).__name__
        raise InputRejected(f"the clip cannot be decoded: {why}") from error
    if not count:
        raise InputRejected("the clip has no frames")
    return Clip(width, height, count, bytes(data), channels=1 if grey else 3)


def _sampled(container: Any, fps: int, frames: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """RGB frames [H, W, 3], one for each of the job's frame times that the clip reaches."""
    if not container.streams.video:
        raise InputRejected("the file has no video")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None or codec.codec.canonical_name not in CODECS:
        raise InputRejected(f"the clip's codec is none of {', '.join(sorted(CODECS))}")
    if codec.width * codec.height > MAX_PIXELS:
        raise InputRejected(f"the clip has frames of {codec.width}×{codec.height}; at most {MAX_PIXELS} pixels")
    rate = float(stream.average_rate or stream.guessed_rate or fps)
    shown, first, wanted, until = None, None, 0, 0.0
    for decoded, frame in enumerate(container.decode(stream)):
        if decoded > (frames / fps + 1) * MAX_RATE:
            raise InputRejected(f"the clip has more than {MAX_RATE} frames a second")
        at = decoded / rate if frame.time is None else frame.time
        first = at if first is None else first
        while shown is not None and wanted < frames and wanted / fps < at - first - _SLACK / fps:
            yield shown
            wanted += 1
        if wanted == frames:
            return
        shown = _upright(frame)
        until = at - first + 1 / rate
    while shown is not None and wanted < frames and wanted / fps < until - _SLACK / fps:
        yield shown
        wanted += 1


def _upright(frame: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB as the frame is to be shown. A large one that does not say its colours' matrix has that of BT.709, as players
    assume."""
    matrix = Colorspace.ITU709 if frame.colorspace == _UNSAID and frame.height >= 720 else None
    rgb: np.ndarray[Any, np.dtype[np.uint8]] = frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()
    return np.rot90(rgb, k=round(frame.rotation / 90) % 4)
