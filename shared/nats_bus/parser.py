"""nats-py's parser, but for messages that are here as a whole, which are nearly all that comes: it matches each against
regular expressions, cuts it out of a buffer twice, and awaits who takes it. Read straight from what the socket gave,
they cost half as much.

What is no message, is none that can be read, or is large and comes in parts is the library's.
"""

from __future__ import annotations

from collections.abc import Callable

from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser
from typing_extensions import override

#: Of the subscription's id, the subject, where an answer goes, the message's head and its data.
Arrived = Callable[[int, bytes, bytes, bytes, bytes], None]

_END = b"\r\n"
#: The part of a message that has come is kept up to so many bytes, and put together with the next.
_MOST_KEPT = 64 * 1024


class DirectParser(Parser):
    """Hands messages to ``arrived``; all else, and what is left to the library, goes to ``client``."""

    def __init__(self, client: object, arrived: Arrived) -> None:
        super().__init__(client)
        self._arrived = arrived

    @override
    def reset(self) -> None:
        super().reset()
        self._rest = b""

    @override
    async def parse(self, data: bytes = b"") -> None:
        if not self.buf and self.state == AWAITING_CONTROL_LINE:  # the library is in the midst of nothing
            data = self._read(self._rest + data)
        if data:
            await super().parse(data)

    def _read(self, data: bytes) -> bytes:
        """Hand on the whole messages at the beginning; what is left for the library."""
        at, self._rest = 0, b""
        while (end := data.find(_END, at)) >= 0:
            kind, *fields = data[at:end].split()
            try:
                if kind == b"MSG":
                    *where, length = fields
                    head_size = 0
                elif kind == b"HMSG":
                    *where, head, length = fields
                    head_size = int(head)
                else:
                    return data[at:]
                size, (subject, sid, reply) = int(length), where if len(where) == 3 else (*where, b"")
                number = int(sid)
            except ValueError:
                return data[at:]
            if not 0 <= head_size <= size:
                return data[at:]
            start, stop = end + len(_END), end + len(_END) + size
            if stop + len(_END) > len(data):
                break
            at = stop + len(_END)
            self._arrived(number, subject, reply, data[start : start + head_size], data[start + head_size : stop])
        if len(data) - at > _MOST_KEPT:
            return data[at:]
        self._rest = data[at:]
        return b""
