"""What the dummy engine leaves: a small real picture, or bytes that say what they are."""

from __future__ import annotations

import hashlib
import struct
import zlib
from io import BytesIO
from pathlib import Path

from shared.messages import JobRequest, Task
from shared.pictures import STILLS
from workers.link import OutputFile, Run

_PICTURE = 64


def write_output(run: Run, index: int, output_bytes: int, *, pictures: bool = False) -> OutputFile:
    """Leave output ``index`` in the run's folder: a file of that size, or of the usual kind if it is negative; and
    small pictures of what it might have been."""
    request = run.request
    if request.task == Task.TEXT_TO_IMAGE and output_bytes < 0:
        name, media_type, side = f"{index}.png", "image/png", _PICTURE
        content = png(side, side, _colour(request, index))
        if request.output_format in STILLS and request.output_format != "png":
            return _encoded(run, index, content)
        width, height, frames, fps = side, side, 1, 0
    else:
        size = 256 if output_bytes < 0 else output_bytes
        name, media_type = f"{index}.bin", "application/octet-stream"
        content = (b"genfleet dummy output\n" * (size // 22 + 1))[:size]
        width, height, frames, fps = 0, 0, 0, 0
    (Path(run.out_dir) / name).write_bytes(content)
    thumbnail, spritesheet = _write_pictures(run, index) if pictures else ("", "")
    if spritesheet:
        width, height, frames = request.width, request.height, request.num_frames
    return OutputFile(
        name=name,
        media_type=media_type,
        width=width,
        height=height,
        num_frames=frames,
        fps=fps,
        thumbnail=thumbnail,
        spritesheet=spritesheet,
    )


def _encoded(run: Run, index: int, content: bytes) -> OutputFile:
    from PIL import Image  # see below

    from workers.engine.stages import stills

    request = run.request
    name, picture = stills.name_of(index, request.output_format), Image.open(BytesIO(content))
    stills.save(picture, Path(run.out_dir) / name, request.output_format, request.output_quality, None)
    return OutputFile(
        name=name,
        media_type=f"image/{request.output_format}",
        width=picture.width,
        height=picture.height,
        num_frames=1,
        fps=0,
    )


def _write_pictures(run: Run, index: int) -> tuple[str, str]:
    import numpy as np  # nothing else that the dummy does needs more than the standard library

    from workers.engine.stages.pictures import Pictures

    request = run.request
    made = Pictures(Path(run.out_dir), index, request.width, request.height, request.num_frames)
    colour = np.asarray(_colour(request, index), np.float64)
    for number in range(request.num_frames):
        shade = colour * (1 - number / request.num_frames)
        made.take(number, np.broadcast_to(shade.astype(np.uint8), (request.height, request.width, 3)))
    return made.write()


def _colour(request: JobRequest, index: int) -> tuple[int, int, int]:
    digest = hashlib.sha256(f"{request.prompt}\0{request.seed}\0{index}".encode()).digest()
    return digest[0], digest[1], digest[2]


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG (RFC 2083, 8-bit RGB) of that many pixels: the colour, fading to white downwards."""
    rows = bytearray()
    for y in range(height):
        fade = y / max(1, height - 1)
        pixel = bytes(round(value + (255 - value) * fade) for value in colour)
        rows += b"\0" + pixel * width

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
