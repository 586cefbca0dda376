"""HTTP over uvicorn with one write per turn of the loop: it writes an answer's head and body each by itself, which is
two calls of the system here and two awakenings of the client; with them a submit costs a tenth more. And with bounds on
a request's head, which it has none for: whoever may not come in yet must not fill the memory, nor stay without asking
for anything. Its bound on connections is kept here: it would refuse those that are within it too, in words of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.exposure import CROWDED
from gateway.uploads import ARRIVED

#: Bytes that are not held back: the transport must get to say that a client does not read.
_ENOUGH = 64 * 1024
#: Bytes of a head, or of what else comes that is no body: more is not read.
MOST_HEAD = 64 * 1024
#: So long a head may take, and twice that at most; it is looked for that often.
HEAD_S = 30.0


class OneWrite:
    """A transport that sends what was written in one turn of the loop at its end; all else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._unsent: list[bytes] = []
        self._size = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it soon."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)
        self._size += len(data)
        if self._size >= _ENOUGH:
            self._flush()

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        unsent, self._unsent, self._size = self._unsent, [], 0
        if unsent and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's, over such a transport, and with bounds on a request's head. What comes over more connections than
    ``limit_concurrency``, or while so many requests are being answered, is marked (``exposure.CROWDED``) for the
    application to refuse. A request whose body is here is marked too (``uploads.ARRIVED``)."""

    _unread = 0  #: bytes since there was a body, or the end of a head
    _heading = True  #: whether a request's head is owed
    _late = False  #: whether it was when it was looked for last
    _look: asyncio.TimerHandle | None = None
    _idle_since: float | None = None  #: when the last answer was complete, if nothing has come since
    _beyond = False  #: whether there were as many connections as there may be when this one came, and still are

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", OneWrite(transport, self.loop)))
        self._beyond = self._most is not None and len(self.connections) > self._most
        self._look = self.loop.call_later(HEAD_S, self._look_for_a_head)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._look, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def on_message_begin(self) -> None:
        self._heading, self._late = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._heading, self._unread = False, 0
        if self._most is not None and self._is_crowded(self._most):
            self.scope["state"][CROWDED] = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        self.scope["state"][ARRIVED] = True
        super().on_message_complete()

    # One timer for as many answers as come before it is due, where uvicorn sets and cancels one for each.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_if_idle_in(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._close_if_idle_in(left)
        else:
            super().timeout_keep_alive_handler()

    def _close_if_idle_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _is_crowded(self, most: int) -> bool:
        self._beyond = self._beyond and len(self.connections) > most
        return self._beyond or len(self.tasks) >= most

    def _look_for_a_head(self) -> None:
        if self._heading and self._late:
            self.transport.close()
            return
        self._late = self._heading
        self._look = self.loop.call_later(HEAD_S, self._look_for_a_head)
