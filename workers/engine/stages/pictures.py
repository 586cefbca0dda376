"""The small pictures beside an output, made of its frames as they pass by: a thumbnail and, of a video, a sprite sheet
(``shared.pictures`` says of which frames, and how large)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.pictures import THUMBNAIL, fitted, sheet_of, thumbnail_frame

Frame = npt.NDArray[np.uint8]
_QUALITY = 82
_THUMBNAIL_QUALITY = 88


class Pictures:
    """The pictures of one output.

    Args:
        folder: to write into.
        index: of the output in its job; names the files.
        width: of every frame.
        height: of every frame.
        num_frames: that are to come.
    """

    def __init__(self, folder: Path, index: int, width: int, height: int, num_frames: int) -> None:
        self._folder, self._index = folder, index
        self._thumbnail: Image.Image | None = None
        self._thumbnail_size = fitted(width, height, THUMBNAIL)
        self._thumbnail_frame = thumbnail_frame(num_frames)
        self._sheet = sheet_of(width, height, num_frames)
        self._tiles: list[Image.Image] = []
        self._wanted = frozenset(self._sheet.frames) if num_frames > 1 else frozenset()

    def take(self, number: int, frame: Frame) -> None:
        """Frame ``number`` of the output, [H, W, 3] RGB."""
        if number == self._thumbnail_frame:
            self._thumbnail = _scaled(frame, self._thumbnail_size)
        if number in self._wanted:
            self._tiles.append(_scaled(frame, (self._sheet.width, self._sheet.height)))

    def write(self) -> tuple[str, str]:
        """Leave the files; names of the thumbnail and the sprite sheet, each empty where there is none."""
        thumbnail = spritesheet = ""
        if self._thumbnail is not None:
            thumbnail = f"{self._index}.thumbnail.jpg"
            self._thumbnail.save(self._folder / thumbnail, format="JPEG", quality=_THUMBNAIL_QUALITY)
        if self._tiles:
            spritesheet = f"{self._index}.spritesheet.jpg"
            self._whole().save(self._folder / spritesheet, format="JPEG", quality=_QUALITY)
        return thumbnail, spritesheet

    def _whole(self) -> Image.Image:
        sheet = self._sheet
        whole = Image.new("RGB", (sheet.columns * sheet.width, sheet.rows * sheet.height))
        for place, tile in enumerate(self._tiles):
            row, column = divmod(place, sheet.columns)
            whole.paste(tile, (column * sheet.width, row * sheet.height))
        return whole


def _scaled(frame: Frame, size: tuple[int, int]) -> Image.Image:
    # Averaged to thrice the size first: what is left to filter is little, whatever the video's size.
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
