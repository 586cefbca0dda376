"""Clips to send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from workers.engine.media import Clip
from workers.engine.stages.mux import Mp4Writer


def level(index: int) -> int:
    """The grey of a film's frame."""
    return 20 + 12 * index


def film(path: Path, frames: int = 9, fps: int = 8, width: int = 64, height: int = 32) -> Path:
    """Grey frames that get brighter."""
    writer = Mp4Writer(path, width, height, fps)
    for index in range(frames):
        writer.write(np.full((height, width, 3), level(index), np.uint8))
    writer.close()
    return path


def levels(clip: Clip) -> list[float]:
    """The greys of its frames."""
    shown = np.frombuffer(clip.data, np.uint8).reshape(clip.frames, -1)
    return [float(frame.mean()) for frame in shown]


def near(clip: Clip, indices: Sequence[int]) -> None:
    """Its frames are those of the film."""
    assert levels(clip) == pytest.approx([level(index) for index in indices], abs=2.5)
