"""Load for benchmarks, as cheap for the machine as it can be made: submits over kept HTTP connections by a bare asyncio
protocol, so that the two cores are left to what is measured. A general HTTP client costs more than the gateway does.
"""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Self, cast


class Refused(Exception):
    """The gateway answered with anything but 202."""


class _Line(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not one by inheritance

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the gateway closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = bytes(self._buffer).partition(b"\r\n\r\n")
        if not found or self._answer is None:
            return
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        )
        if len(body) < length:
            return
        self._buffer.clear()
        status = int(head[9:12])
        if status == 202:
            self._answer.set_result(body)
        else:
            self._answer.set_exception(Refused(f"{status}: {body[:500]!r}"))

    async def ask(self, request: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Load:
    """Submits jobs over a pool of connections; a context manager.

    Args:
        host, port: the gateway's.
        job: the JSON body of every submit.
    """

    def __init__(self, host: str, port: int, job: dict[str, object], connections: int = 32) -> None:
        body = json.dumps(job).encode()
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        self._request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        self._host, self._port, self._count = host, port, connections
        self._lines: list[_Line] = []
        self._free: asyncio.Queue[_Line] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            _, line = await loop.create_connection(_Line, self._host, self._port)
            self._lines.append(line)
            self._free.put_nowait(line)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._lines:
            line.close()

    async def submit(self) -> bytes:
        """Submit one job as soon as a connection is free; the answer's body.

        Raises:
            Refused: it was not taken.
        """
        line = await self._free.get()
        try:
            return await line.ask(self._request)
        finally:
            self._free.put_nowait(line)
