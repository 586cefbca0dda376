"""Frames → a file: H.264 in mp4, frame by frame, or a picture for a single one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from workers.engine.errors import NotServed
from workers.engine.stages import stills
from workers.engine.stages.pictures import Pictures
from workers.engine.stages.provenance import Provenance, append_xmp
from workers.link import OutputFile

Frame = npt.NDArray[np.uint8]
_BT709 = 1


class Mp4Writer:
    """One mp4 being written: H.264, yuv420p, BT.709 limited range, the index in front (``faststart``).

    Args:
        path: of the file.
        width: even.
        height: even.
        fps: frames per second.
        origin: what the file says of it.

    Raises:
        NotServed: width or height is odd, which yuv420p does not have.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int, origin: Provenance | None = None) -> None:
        if width % 2 or height % 2:
            raise NotServed(f"a video of {width}×{height} cannot be written: both must be even")
        self._path, self._origin = path, origin
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        if origin is not None:
            self._container.metadata["comment"] = origin.comment
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"crf": "17", "preset": "veryfast"}
        context = self._stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG.value, Colorspace.ITU709.value
        context.color_primaries = context.color_trc = _BT709
        self._tick = Fraction(1, fps)
        self.frames = 0

    def write(self, frame: Frame) -> None:
        """Add one frame, [H, W, 3] RGB."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        converted = picture.reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
        )
        converted.pts = self.frames
        converted.time_base = self._tick
        self._container.mux(self._stream.encode(converted))
        self.frames += 1

    def close(self) -> None:
        """Write what is left and the index; the file is complete after that."""
        self._container.mux(self._stream.encode())
        self._container.close()
        if self._origin is not None:
            append_xmp(self._path, self._origin.xmp)

    def abandon(self) -> None:
        """Close without completing: the job was stopped or failed."""
        self._container.close()


class Output:
    """The file of one output, a picture for a single frame and mp4 for more, and the small pictures of it; frames go in
    as they are decoded.

    Args:
        folder: to write into.
        index: of the output in its job; names the file.
        width: of every frame.
        height: of every frame.
        num_frames: that are to come.
        fps: of a video.
        origin: what the file says of it.
        still: the format of a single frame (``shared.pictures.STILLS``).
        quality: of that, 0 to 100, where it has one.
    """

    def __init__(
        self,
        folder: Path,
        index: int,
        width: int,
        height: int,
        num_frames: int,
        fps: int,
        origin: Provenance | None = None,
        still: str = "png",
        quality: int | None = None,
    ) -> None:
        self._is_video = num_frames > 1
        self._still, self._quality = still, quality
        self._path = folder / (f"{index}.mp4" if self._is_video else stills.name_of(index, still))
        self._size, self._fps = (width, height), fps if self._is_video else 0
        self._origin = origin
        self._video = Mp4Writer(self._path, width, height, fps, origin) if self._is_video else None
        self._pictures = Pictures(folder, index, width, height, num_frames)
        self._frames = 0

    def write(self, frame: Frame) -> None:
        """Add one frame, [H, W, 3] RGB."""
        self._pictures.take(self._frames, frame)
        self._frames += 1
        if self._video is not None:
            self._video.write(frame)
        else:
            stills.save(Image.fromarray(frame), self._path, self._still, self._quality, self._origin)

    def close(self) -> OutputFile:
        """Complete the files."""
        if self._video is not None:
            self._video.close()
        thumbnail, spritesheet = self._pictures.write()
        width, height = self._size
        return OutputFile(
            name=self._path.name,
            media_type="video/mp4" if self._is_video else f"image/{self._still}",
            width=width,
            height=height,
            num_frames=self._frames,
            fps=self._fps,
            thumbnail=thumbnail,
            spritesheet=spritesheet,
        )

    def abandon(self) -> None:
        """The job was stopped or failed: leave the file as it is."""
        if self._video is not None:
            self._video.abandon()
