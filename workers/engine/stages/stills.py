"""One frame → a picture: PNG, or in less room JPEG or WebP, with what is said of its origin."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shared.pictures import QUALITY, STILLS, suffix_of
from workers.engine.stages.provenance import Provenance, software

#: Bytes of a marker of JPEG, less the name that XMP has in its own.
_MARKER = 65_000


def still_of(output_format: str) -> str:
    """The format of a single frame; of one that was asked for as a video, PNG."""
    return output_format if output_format in STILLS else "png"


def name_of(index: int, still: str) -> str:
    """The name of an output's file."""
    return f"{index}.{suffix_of(f'image/{still}')}"


def save(picture: Image.Image, path: Path, still: str, quality: int | None, origin: Provenance | None) -> None:
    """Write the picture, RGB.

    Args:
        still: one of ``shared.pictures.STILLS``.
        quality: 0 to 100, of JPEG and WebP.
        origin: what the file says of it. A JPEG leaves out what does not fit into one of its markers.
    """
    quality = QUALITY if quality is None else quality
    xmp = b"" if origin is None else origin.xmp.encode()
    match still:
        case "jpeg":
            said = {} if origin is None else {"comment": origin.comment.encode(), "xmp": xmp}
            fitting = {name: data for name, data in said.items() if len(data) <= _MARKER}
            picture.save(path, format="JPEG", quality=quality, subsampling=0, **fitting)
        case "webp":
            picture.save(path, format="WEBP", quality=quality, xmp=xmp)
        case _:
            picture.save(path, format="PNG", pnginfo=_png_info(origin))


def _png_info(origin: Provenance | None) -> PngInfo | None:
    if origin is None:
        return None
    info = PngInfo()
    info.add_itxt("Software", software())
    info.add_itxt("Comment", origin.comment)
    info.add_itxt("XML:com.adobe.xmp", origin.xmp)
    return info
