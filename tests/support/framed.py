"""Inputs as the engine sees them, without a child: decoded in the test's own process by the code that runs in one."""

from __future__ import annotations

import io
from pathlib import Path

from shared import inputs, media
from shared.decoding import HEADER_SIZE, How, Make, shape_of
from shared.messages import JobRequest
from workers.engine.media import Clip, Picture
from workers.intake import work


def frames(path: Path, make: Make) -> bytes:
    """The file of frames that intake makes of that file."""
    with path.open("rb") as file:
        seen = media.inspect(file, path.name)
        target = io.BytesIO()
        work.write(file, seen.media_type, make, target)
    return target.getvalue()


def read_picture(path: Path, width: int, height: int, how: How = How.COVER) -> Picture:
    """A picture that covers the size."""
    made = frames(path, Make(how=how, width=width, height=height, frames=1, fps=1))
    return Picture(width, height, made[HEADER_SIZE:])


def read_reference(path: Path, width: int, height: int) -> Picture:
    """A picture that is whole within the size."""
    return read_picture(path, width, height, How.WHOLE)


def read_clip(path: Path, width: int, height: int, fps: int, count: int, *, grey: bool = False) -> Clip:
    """A clip of that size and rate."""
    make = Make(how=How.GREY if grey else How.COVER, width=width, height=height, frames=count, fps=fps)
    made = frames(path, make)
    shape = shape_of(made, len(made), make)
    return Clip(shape.width, shape.height, shape.frames, made[HEADER_SIZE:], shape.channels)


def framed(request: JobRequest, paths: dict[str, str]) -> dict[str, str]:
    """The files of frames that an agent would give to the group, beside the inputs."""
    made = {}
    for name, path in paths.items():
        into = Path(path).with_name(f"{Path(path).name}-{name}.frames")
        into.write_bytes(frames(Path(path), inputs.make(name, request)))
        made[name] = str(into)
    return made
