"""NATS's client protocol: bytes in, what the server says out; what we say to bytes. Pure.

https://docs.nats.io/reference/reference-protocols/nats-protocol. Lines end in CRLF; a payload's size stands in its
line:

    MSG  <subject> <sid> [reply] <size>                 PUB  <subject> [reply] <size>
    HMSG <subject> <sid> [reply] <head size> <size>     HPUB <subject> [reply] <head size> <size>
    INFO {…}   PING   PONG   +OK   -ERR '…'             CONNECT {…}   SUB <subject> <sid>   UNSUB <sid>   PING   PONG

The head of a message is ``NATS/1.0[ <status>]`` and lines ``name: value``; few are ever looked at, so a message keeps
its head as it came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import msgspec
from msgspec import Struct

#: A line of the server's may be so long: INFO of a large cluster lists all of its servers.
MAX_LINE = 64 * 1024
_CRLF = b"\r\n"
_HEAD = b"NATS/1.0"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class WireError(Exception):
    """What came is not the protocol."""


@dataclass(slots=True)
class Msg:
    """A message to one of our subscriptions. ``head``: empty if it has none."""

    subject: str
    sid: int
    reply: str
    head: bytes
    data: bytes

    @property
    def status(self) -> str:
        """The status of a message by which the server itself says something (``503``: nobody listens); else empty."""
        if not self.head:
            return ""
        first = self.head[len(_HEAD) : self.head.index(_CRLF)].split()
        return first[0].decode() if first else ""

    def headers(self) -> dict[str, str]:
        """Names and values of the head."""
        return parse_head(self.head)


class Word(Enum):
    """What the server says without any more to it."""

    PING = b"PING"
    PONG = b"PONG"


class Info(Struct, frozen=True):
    """What the server says of itself before anything else, and when its cluster changes."""

    version: str = ""
    max_payload: int = 1024 * 1024
    tls_required: bool = False

    @property
    def version_number(self) -> tuple[int, int, int]:
        """E.g. ``(2, 9, 10)``; zeros if it cannot be read."""
        found = _VERSION.match(self.version)
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


@dataclass(slots=True)
class ServerError:
    """``-ERR``: most are followed by the end of the connection; one about permissions is not."""

    text: str


Said = Msg | Word | Info | ServerError

_infos = msgspec.json.Decoder(Info)


class Reader:
    """Takes the server's bytes as they come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Said]:
        """What is complete now, in order.

        Raises:
            WireError: it is not the protocol; nothing that follows can be read either.
        """
        buffer = self._rest + data if self._rest else data
        said: list[Said] = []
        at, end = 0, len(buffer)
        try:
            while at < end:
                eol = buffer.find(_CRLF, at)
                if eol < 0:
                    if end - at > MAX_LINE:
                        raise WireError("a line without end")
                    break
                first = buffer[at]
                if first == 0x4D or first == 0x48:  # M, H
                    words = buffer[at:eol].split()
                    head = first == 0x48
                    replied = len(words) - head - 4  # 0 or 1: the words are one more with a reply, and with a head
                    if not 0 <= replied <= 1:
                        raise WireError(f"cannot be read: {buffer[at:eol][:80]!r}")
                    start = eol + 2
                    body, stop = start + int(words[-2]) if head else start, start + int(words[-1])
                    if stop + 2 > end:
                        break
                    reply = words[3].decode() if replied else ""
                    said.append(Msg(words[1].decode(), int(words[2]), reply, buffer[start:body], buffer[body:stop]))
                    at = stop + 2
                else:
                    line = buffer[at:eol]
                    at = eol + 2
                    found = _line(line)
                    if found is not None:
                        said.append(found)
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise WireError(f"cannot be read: {buffer[at : at + 80]!r}") from error
        self._rest = buffer[at:]
        return said


def _line(line: bytes) -> Said | None:
    word, _, rest = line.partition(b" ")
    match word.upper():
        case b"PING":
            return Word.PING
        case b"PONG":
            return Word.PONG
        case b"+OK":
            return None
        case b"-ERR":
            return ServerError(rest.decode(errors="replace").strip().strip("'"))
        case b"INFO":
            return _infos.decode(rest)
    raise WireError(f"not a word of the server's: {line[:80]!r}")


def parse_head(head: bytes) -> dict[str, str]:
    """Names and values in the head of a message."""
    lines = head.decode(errors="replace").split("\r\n")[1:]
    return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


class Greeting(Struct, rename={"password": "pass"}):
    """What ``CONNECT`` says: who we are, and that we know headers and want to hear when nobody listens."""

    name: str
    version: str
    auth_token: str = ""
    user: str = ""
    password: str = ""
    lang: str = "python"
    protocol: int = 1
    verbose: bool = False
    pedantic: bool = False
    headers: bool = True
    no_responders: bool = True


PING = b"PING\r\n"
PONG = b"PONG\r\n"


def connect(greeting: Greeting) -> bytes:
    """``CONNECT``."""
    return b"CONNECT " + msgspec.json.encode(greeting) + _CRLF


def subscribe(subject: str, sid: int) -> bytes:
    """``SUB``."""
    return f"SUB {subject} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    """``UNSUB``."""
    return b"UNSUB %d\r\n" % sid


def publish(subject: str, reply: str, payload: bytes, headers: dict[str, str] | None = None) -> bytes:
    """``PUB``, or ``HPUB`` if there are headers. Subjects and headers are taken as they are: check them before."""
    if headers is None:
        return b"PUB %b %d\r\n%b\r\n" % (f"{subject} {reply}".encode(), len(payload), payload)
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    size = len(head)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (f"{subject} {reply}".encode(), size, size + len(payload), head, payload)
