"""As many requests as a server answers: every connection sends its next one when it has the answer to its last. A bare
protocol, because a general HTTP client costs more than what is measured, on the same cores."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast


def request(
    method: str, path: str, port: int, *, headers: Mapping[str, str] | None = None, body: object = None
) -> bytes:
    """A whole HTTP/1.1 request; ``body`` is sent as JSON if there is one."""
    content = b"" if body is None else json.dumps(body).encode()
    given = {"Host": f"127.0.0.1:{port}", **(headers or {})}
    if body is not None:
        given |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode() + content


@dataclass
class Blast:
    """What came of it: seconds from the first request to the last answer, and of each request."""

    count: int
    status: int
    left: int = 0
    began: float = 0.0
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / (self.ended - self.began)


class _Line(asyncio.Protocol):
    def __init__(self, blast: Blast, next_request: Callable[[], bytes], done: asyncio.Future[None]) -> None:
        self._blast, self._next, self._done = blast, next_request, done
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("the server closed the connection"))

    def send(self) -> None:
        blast = self._blast
        if blast.left == 0:
            return
        blast.left -= 1
        assert self._transport is not None
        self._sent = time.perf_counter()
        self._transport.write(self._next())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, end)
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r", at)])
        if len(self._buffer) < end + 4 + length:
            return
        blast, now = self._blast, time.perf_counter()
        if int(self._buffer[9:12]) != blast.status and not self._done.done():
            self._done.set_exception(RuntimeError(f"answered {bytes(self._buffer[:600])!r}"))
            return
        blast.latencies.append(now - self._sent)
        blast.ended = now
        self._buffer.clear()
        if blast.left:
            self.send()
        elif len(blast.latencies) == blast.count and not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def blast(port: int, next_request: Callable[[], bytes], count: int, status: int, connections: int) -> Blast:
    """Send so many requests over so many connections to a server on the loopback.

    Raises:
        RuntimeError: an answer had another status.
        ConnectionError: the server closed a connection.
    """
    loop = asyncio.get_running_loop()
    found, done = Blast(count=count, status=status, left=count), loop.create_future()
    lines = []
    found.began = time.perf_counter()
    try:
        for _ in range(connections):
            _, line = await loop.create_connection(lambda: _Line(found, next_request, done), "127.0.0.1", port)
            lines.append(line)
        await done
    finally:
        for line in lines:
            line.close()
    return found
