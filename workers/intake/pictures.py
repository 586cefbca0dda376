"""A picture of any kind that is accepted → its first frame in sRGB, turned as it is to be shown, of the size wanted."""

from __future__ import annotations

import io
import struct
import warnings
from typing import IO

from PIL import Image, ImageCms, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from shared.decoding import MAX_PIXELS, How
from shared.errors import GenfleetError

#: The decoders that may see a file, by what its first bytes say that it is: no other ever does.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "image/png": PngImagePlugin.PngImageFile,
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
}
_WIDE = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_LINE = "\n"
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Rejected(GenfleetError):
    """The file is not a picture or clip that is taken."""


def read(file: IO[bytes], media_type: str) -> Image.Image:
    """The picture in RGB over white, as it is to be shown.

    Colours: an embedded profile is converted to sRGB; 16 bits become 8; grey, palette and CMYK become RGB.

    Raises:
        Rejected: damaged, or of more than ``MAX_PIXELS``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _DECODERS[media_type](file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Rejected(f"the picture has {image.width}×{image.height} pixels; at most {MAX_PIXELS}")
                image.load()
                return _in_srgb(ImageOps.exif_transpose(image))
    except Rejected:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error) as error:
        # The library's own text may hold what it likes: only its first line, and not all of that.
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Rejected(f"a damaged or truncated {media_type}: {text.partition(_LINE)[0][:120]}") from error


def fitted(image: Image.Image, width: int, height: int, how: How) -> Image.Image:
    """The picture at that size, see ``How``. Lanczos, as the models were trained on."""
    if how is How.WHOLE:
        return _whole(image, width, height)
    covering = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS, centering=(0.5, 0.5))
    return covering.convert("L") if how is How.GREY else covering


def _whole(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = _profile(image)
    if image.mode in _WIDE:
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    alpha = None
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        alpha = layered.getchannel("A")
        image = image.convert("L") if image.mode in ("LA", "La") else layered.convert("RGB")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    flat = _converted(image, profile)
    if alpha is None:
        return flat
    flat.putalpha(alpha)
    white = Image.new("RGBA", flat.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, flat).convert("RGB")


def _profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The embedded profile, unless it says what is assumed without it, or nothing that can be read."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        return None if "srgb" in ImageCms.getProfileDescription(profile).lower() else profile
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile | None) -> Image.Image:
    if profile is not None:
        try:
            made = ImageCms.profileToProfile(image, profile, _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, ValueError):
            made = None  # of another kind of colour than the picture: as if it had none
        if made is not None:
            return made
    return image.convert("RGB")
