"""What comes before a request is one: whoever may not come in yet fills no memory and does not stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from gateway import one_write
from gateway.one_write import OneWriteProtocol
from gateway.uploads import ARRIVED
from tests.support.gateway import BOUND_S


@asynccontextmanager
async def listening(began: Callable[[Any], None] = lambda _: None) -> AsyncIterator[int]:
    """A server that answers each request with the length of its body. ``began`` is told the scope of each."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began(scope)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"%8d" % size})

    config = uvicorn.Config(app, http=OneWriteProtocol, lifespan="off", port=0, log_config=None)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def said_to(port: int, *parts: bytes) -> bytes:
    """What comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
    try:
        async with asyncio.timeout(BOUND_S):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


BEGUN = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [BEGUN + b"X: ", *[b"a" * 8192] * 40],
        [BEGUN, *[b"X: a\r\n" * 1024] * 40],
        [b"GET /", *[b"a" * 8192] * 40],
        [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", *[b"X: a\r\n" * 1024] * 40],
    ],
    ids=["a field", "fields", "a path", "trailers"],
)
async def test_a_head_without_end_is_not_kept(parts: list[bytes]) -> None:
    async with listening() as port:
        answered = await said_to(port, *parts)
    assert answered.startswith(b"HTTP/1.1 400") or not answered  # what was not read resets the connection


async def test_a_long_body_is_no_long_head() -> None:
    async with listening() as port:
        head = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 1048576\r\n\r\n"
        answered = await said_to(port, head, *[b"a" * 65536] * 16)
    assert answered.startswith(b"HTTP/1.1 200")
    assert answered.endswith(b" 1048576")


@pytest.mark.parametrize("begun", [b"", BEGUN])
async def test_who_asks_for_nothing_does_not_stay(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_write, "HEAD_S", 0.05)
    async with listening() as port:
        assert await said_to(port, begun) == b""


POST = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"


async def test_a_request_is_marked_once_all_of_its_body_is_here() -> None:
    seen: asyncio.Queue[tuple[Any, bool]] = asyncio.Queue()
    async with listening(lambda scope: seen.put_nowait((scope, ARRIVED in scope["state"]))) as port:
        assert (await said_to(port, POST + b"body")).endswith(b" 4")
        assert seen.get_nowait()[1]

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"bo")
        async with asyncio.timeout(BOUND_S):
            scope, marked = await seen.get()
        assert not marked
        assert ARRIVED not in scope["state"]
        writer.write(b"dy")
        async with asyncio.timeout(BOUND_S):
            assert (await reader.read()).endswith(b" 4")
        assert ARRIVED in scope["state"]
        writer.close()
