"""A TCP proxy that behaves like a bad network: put between a service and nats-server, it cuts what no kill can cut.

It starts out passing everything. ``black_hole`` holds every byte, and the silence looks to both ends as if the cable
had been pulled: nothing is closed, and what was sent arrives late if the cable is put back (TCP sends again).
``reset`` ends all connections with RST, and each new one until ``heal``; ``cut`` ends those that are open. ``delay``
makes each read's bytes late. One direction may be lost for good (``to_server``, ``to_client``), as an answer is.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024
#: Linger on, for no time: closing sends RST and forgets what was not sent.
_NO_LINGER = struct.pack("ii", 1, 0)


class Proxy:
    """A proxy on a free port of the loopback to ``host:port``; an asynchronous context manager.

    Attributes:
        port: where it listens.
        connections: how many are open now.
        to_server, to_client: whether bytes pass in that direction. What comes while they do not is lost, and with it
            all that follows it on the same connection.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._resetting = False
        self._delay_s = 0.0
        self._pairs: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self.port = 0
        self.to_server = True
        self.to_client = True

    @property
    def connections(self) -> int:
        return len(self._pairs)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """End every connection with RST; new ones pass, in both directions."""
        self.to_server = self.to_client = True
        tasks = list(self._pairs)
        for writers in self._pairs.values():
            for writer in writers:
                _reset(writer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def black_hole(self) -> None:
        """Hold every byte in both directions; connections stay open."""
        self._flowing.clear()

    def delay(self, seconds: float) -> None:
        """From now on, what is read is passed on that much later."""
        self._delay_s = seconds

    def reset(self) -> None:
        """End every connection with RST, and every new one until ``heal``."""
        self._resetting = True
        for writers in self._pairs.values():
            for writer in writers:
                _reset(writer)

    def heal(self) -> None:
        """Pass everything again, what was held first."""
        self._resetting = False
        self._delay_s = 0.0
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._resetting:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._pairs[task] = (writer,)
        try:
            await self._connect(task, reader, writer)
        except asyncio.CancelledError:
            # The server's own callback would report a cancelled connection as an error of its own.
            pass
        finally:
            for open_writer in self._pairs.pop(task):
                open_writer.transport.abort()

    async def _connect(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._flowing.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            return
        self._pairs[task] = (writer, far_writer)
        if self._resetting:
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pump(reader, far_writer, lambda: self.to_server))
            both.create_task(self._pump(far_reader, writer, lambda: self.to_client))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: Callable[[], bool]) -> None:
        """One direction, to its end; an end that is reset takes the other along."""
        lost = False
        try:
            while chunk := await source.read(_CHUNK):
                lost = lost or not passes()
                if lost:
                    continue
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._flowing.wait()
                sink.write(chunk)
                await sink.drain()
            await self._flowing.wait()
            sink.write_eof()
        except OSError:
            sink.transport.abort()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() != -1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
