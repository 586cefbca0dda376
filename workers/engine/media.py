"""Pictures in: what a user sent → RGB of exactly the job's size."""

from __future__ import annotations

import warnings
from pathlib import Path

from msgspec import Struct
from PIL import Image, ImageOps, UnidentifiedImageError

from workers.engine.errors import InputRejected

#: Pixels of an input picture above which it is refused before it is decoded.
MAX_PIXELS = 64_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class Picture(Struct, frozen=True):
    """A picture as it travels between ranks: ``rgb`` holds height × width × 3 bytes."""

    width: int
    height: int
    rgb: bytes

    def grey(self) -> bytes:
        """Its brightness, height × width bytes."""
        return Image.frombytes("RGB", (self.width, self.height), self.rgb).convert("L").tobytes()


class Clip(Struct, frozen=True):
    """Frames as they travel between ranks: ``data`` holds frames × height × width × channels bytes."""

    width: int
    height: int
    frames: int
    data: bytes
    channels: int = 3


def read_picture(path: Path, width: int, height: int) -> Picture:
    """The first frame of that file, turned as its EXIF orientation says, in RGB over white, scaled to cover
    ``width`` × ``height`` with its proportions kept, and cut at the centre.

    Raises:
        InputRejected: it is not a picture of a known format, is damaged, or has more than ``MAX_PIXELS``.
    """
    flat = _read(path)
    fitted = ImageOps.fit(flat, (width, height), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))
    return Picture(width, height, fitted.tobytes())


def read_reference(path: Path, width: int, height: int) -> Picture:
    """As ``read_picture``, but whole: scaled to fit into ``width`` × ``height``, in the middle of white.

    Raises:
        InputRejected: as ``read_picture``.
    """
    flat = _read(path)
    scale = min(width / flat.width, height / flat.height)
    size = (max(1, int(flat.width * scale)), max(1, int(flat.height * scale)))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(flat.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return Picture(width, height, canvas.tobytes())


def _read(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputRejected(f"the picture has {image.width}×{image.height} pixels; at most {MAX_PIXELS}")
                turned = ImageOps.exif_transpose(image)
                return _over_white(turned)
    except InputRejected:
        raise
    except UnidentifiedImageError as error:
        raise InputRejected("the file is not a picture of a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputRejected(f"the picture cannot be decoded: {error}") from error


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")
