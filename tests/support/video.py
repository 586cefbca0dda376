"""Reading back what the fleet made."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray


def read_video(content: bytes) -> list[NDArray[np.uint8]]:
    """The frames of an mp4, each ``[height, width, 3]`` RGB in 0..255."""
    with av.open(io.BytesIO(content), format="mp4") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB between two pictures of the same shape; infinite when they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def make_video(frames: int = 5, width: int = 64, height: int = 48, fps: int = 8) -> bytes:
    """An mp4 of so many grey frames, each a little lighter than the one before."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            picture = np.full((height, width, 3), 40 + 8 * index, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()
