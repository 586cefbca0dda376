"""An HTTP server of the test's own process, for what is fetched and called by URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

#: From a request's head to the pieces of its answer.
Answer = Callable[[str], Iterable[bytes]]


@asynccontextmanager
async def server(answer: Answer | None) -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP server of this process, which says nothing without an ``answer``: its URL, and the request lines that
    reached it."""
    seen: list[str] = []
    talks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        talks.add(talk)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            seen.append(head.splitlines()[0])
            if answer is None:
                await reader.read()
            else:
                for piece in answer(head):
                    writer.write(piece)
                    await writer.drain()
        writer.transport.abort() if answer is None else writer.close()
        with suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    listening = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", seen
    finally:
        listening.close()
        await listening.wait_closed()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks)


def said(body: bytes, status: str = "200 OK", *more: str) -> list[bytes]:
    """One answer."""
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *more)
    return ["\r\n".join(lines).encode() + b"\r\n\r\n" + body]
