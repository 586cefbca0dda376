"""A connection that nobody uses is closed, and one that somebody uses is not, though one timer serves many answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn

from gateway import one_write
from gateway.one_write import OneWriteProtocol
from tests.support.gateway import BOUND_S

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
#: Timers of so many seconds are not due while a test runs.
NEVER = 10_000.0


class Held:
    """An application that answers when it may."""

    def __init__(self) -> None:
        self.may, self.began = asyncio.Event(), asyncio.Event()
        self.may.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.began.set()
        await self.may.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving(app: Held, keep_alive_s: float) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(app, http=OneWriteProtocol, lifespan="off", port=0, log_config=None)
    config.timeout_keep_alive = cast("int", keep_alive_s)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server
    finally:
        app.may.set()
        await server.shutdown()


async def connect(server: uvicorn.Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])


async def answered(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(BOUND_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(2) == b"ok"


def only(server: uvicorn.Server) -> OneWriteProtocol:
    """The one connection."""
    (protocol,) = server.server_state.connections
    assert isinstance(protocol, OneWriteProtocol)
    return protocol


def timer(protocol: OneWriteProtocol) -> asyncio.TimerHandle | None:
    return protocol.timeout_keep_alive_task


async def test_who_asks_no_more_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_write, "HEAD_S", NEVER)
    async with serving(Held(), 0.05) as server:
        reader, writer = await connect(server)
        writer.write(ASK)
        await answered(reader)
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()


async def test_one_timer_serves_many_answers_and_closes_nobody_who_asks() -> None:
    app = Held()
    async with serving(app, NEVER) as server:
        reader, writer = await connect(server)
        for _ in range(3):
            writer.write(ASK)
            await answered(reader)
        protocol = only(server)
        first = timer(protocol)
        assert first is not None

        app.may.clear()
        app.began.clear()
        writer.write(ASK)
        async with asyncio.timeout(BOUND_S):
            await app.began.wait()
        assert timer(protocol) is first
        protocol.timeout_keep_alive_handler()  # due while somebody waits for an answer
        assert timer(protocol) is None
        app.may.set()
        await answered(reader)

        second = timer(protocol)
        assert second is not None
        protocol.timeout_keep_alive_handler()  # due, but the last answer was a moment ago
        assert timer(protocol) not in (None, second)
        assert not protocol.transport.is_closing()
        writer.write(ASK)
        await answered(reader)
        writer.close()


async def test_requests_sent_at_once_are_answered_one_after_another() -> None:
    async with serving(Held(), NEVER) as server:
        reader, writer = await connect(server)
        writer.write(ASK * 3)
        for _ in range(3):
            await answered(reader)
        assert server.server_state.total_requests == 3
        writer.close()
