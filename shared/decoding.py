"""What is asked of the process that decodes untrusted pictures and clips (``workers/intake``), what it answers, and the
files that it writes.

A question is one packet of JSON on the process's control socket, with the file's descriptor, the reply's and, if frames
are to be made, theirs. Its answer is up to two packets on the reply's socket: the child's ``Verdict``, and, once the
child has ended, an ``Ended`` that the process adds; then the end of the stream.
"""

from __future__ import annotations

import struct
from enum import StrEnum

import msgspec
from msgspec import Struct

from shared.errors import GenfleetError

MAX_PACKET = 64 * 1024
MAX_MESSAGE = 300
#: Pixels of a picture, and of a clip's frame, above which it is refused before it is decoded: as ``shared.media``.
MAX_PIXELS = 4096 * 4096
#: Frames per second of a clip above which it is refused.
MAX_RATE = 240
#: Seconds that a clip may say to last.
MAX_CLIP_S = 3600.0
#: Streams in a clip's container: pictures, sound, subtitles.
MAX_STREAMS = 8
#: Of a clip whose job is not known yet, so many frames are decoded, and only the places of the others are looked at.
CHECKED_FRAMES = 121
#: Magic, width, height, frames, channels, and 1 for a still.
_HEADER = struct.Struct("<8s5I")
_MAGIC = b"gfframes"
HEADER_SIZE = _HEADER.size


class How(StrEnum):
    """What becomes of an input."""

    #: Scaled to cover the size with its proportions kept, and cut at the centre.
    COVER = "cover"
    #: Scaled to fit into the size, in the middle of white.
    WHOLE = "whole"
    #: As COVER, in one channel of brightness.
    GREY = "grey"


class Make(Struct, frozen=True, kw_only=True):
    """Frames that are to be written: of a clip, as many as it has at ``fps``, and no more than ``frames``."""

    how: How
    width: int
    height: int
    frames: int
    fps: int

    @property
    def channels(self) -> int:
        """Bytes of each pixel."""
        return 1 if self.how is How.GREY else 3

    @property
    def max_bytes(self) -> int:
        """Of the file that is written."""
        return HEADER_SIZE + self.frames * self.width * self.height * self.channels


class Limits(Struct, frozen=True, kw_only=True):
    """What one child may use.

    Attributes:
        cpu_s: seconds of processor time.
        wall_s: seconds until it is killed.
        memory: bytes of address space beyond those of an idle child.
    """

    cpu_s: int = 30
    wall_s: float = 60.0
    memory: int = 1536 * 1024 * 1024


class Ask(Struct, frozen=True, kw_only=True):
    """Decode this file.

    Attributes:
        field: the input's name, for people.
        allowed: media types that it may be.
        make: what to write; None: nothing, the file is only checked.
    """

    field: str
    allowed: tuple[str, ...]
    make: Make | None
    limits: Limits


class Verdict(Struct, frozen=True, kw_only=True):
    """What the child says. ``refused`` is the sentence for people, empty if all is well; ``unwritten``, why the frames
    could not be written down; sizes are those of the file as it is shown."""

    refused: str = ""
    unwritten: str = ""
    media_type: str = ""
    width: int = 0
    height: int = 0


class Ended(Struct, frozen=True, kw_only=True):
    """How the child ended: by this signal (0: by itself), after so much processor time; ``late``: it was killed at its
    deadline."""

    signal: int
    cpu_s: float
    late: bool = False


class Hello(Struct, frozen=True, kw_only=True):
    """The process is ready, and this is what holds for its children: the names of the layers that the kernel granted,
    and those that it did not."""

    holds: tuple[str, ...]
    lacks: tuple[str, ...] = ()


class Shape(Struct, frozen=True, kw_only=True):
    """The head of a file of frames: after it come frames × height × width × channels bytes. ``still``: the input was a
    picture."""

    width: int
    height: int
    frames: int
    channels: int
    still: bool = False

    @property
    def size(self) -> int:
        """Bytes of the frames."""
        return self.width * self.height * self.frames * self.channels

    def pack(self) -> bytes:
        """The head as bytes."""
        return _HEADER.pack(_MAGIC, self.width, self.height, self.frames, self.channels, self.still)


class NotFrames(GenfleetError):
    """The file does not hold the frames that were asked for."""


def shape_of(head: bytes, size: int, make: Make) -> Shape:
    """The head of a file of frames that was made so.

    Args:
        head: the file's first bytes.
        size: of the file, in bytes.

    Raises:
        NotFrames: it is not one, or not what ``make`` asks for: whoever wrote it is not trusted.
    """
    if len(head) < HEADER_SIZE:
        raise NotFrames
    magic, width, height, frames, channels, still = _HEADER.unpack_from(head)
    shape = Shape(width=width, height=height, frames=frames, channels=channels, still=still == 1)
    asked = (make.width, make.height, make.channels)
    if magic != _MAGIC or (width, height, channels) != asked or not 1 <= frames <= make.frames:
        raise NotFrames
    if size != HEADER_SIZE + shape.size or (shape.still and frames != 1):
        raise NotFrames
    return shape


encode = msgspec.json.encode
asked = msgspec.json.Decoder(Ask).decode
verdict = msgspec.json.Decoder(Verdict).decode
ended = msgspec.json.Decoder(Ended).decode
hello = msgspec.json.Decoder(Hello).decode
