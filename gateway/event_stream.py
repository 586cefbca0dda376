"""An answer that goes on: server-sent events to one client, at the cost of two tasks and their frames, which is what
counts where there are thousands of clients (the framework's own streaming answer has four, and twice the memory)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from litestar.response import Response
from litestar.types import ASGIApp, Receive, Scope, Send

#: Proxies must neither keep nor collect what is sent.
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response[bytes]):
    """The events as they come, to their end or until the client is gone.

    Args:
        events: encoded events; closed in every case.
        left: called if the client is gone before their end.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], left: Callable[[], None] = lambda: None) -> None:
        super().__init__(b"")
        self._events = events
        self._left = left

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]
        """The answer itself; what the framework would add to it (cookies, further headers) there is none of here."""
        return self._send

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        here = asyncio.current_task()
        assert here is not None
        client = asyncio.create_task(_gone(receive))
        stop = _Stop(here)
        client.add_done_callback(stop)
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not stop.stopped:
                raise
            here.uncancel()
            self._left()
        finally:
            client.remove_done_callback(stop)
            client.cancel()


class _Stop:
    """Ends the sending when the client is gone, and remembers that this was why."""

    __slots__ = ("_sending", "stopped")

    def __init__(self, sending: asyncio.Task[Any]) -> None:
        self._sending = sending
        self.stopped = False

    def __call__(self, _: asyncio.Task[None]) -> None:
        self.stopped = True
        self._sending.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
