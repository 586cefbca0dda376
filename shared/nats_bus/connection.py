"""One connection to a NATS server, from its opening to its first break.

nats-py can reconnect by itself, but then a request that was in flight waits for its whole timeout, what was buffered
may be sent after its caller was told that it failed, and a stalled socket can hold the reconnection for ever. So a
connection is used once: when it breaks, all that wait on it fail at once, what it had not sent is gone with it, and
the bus opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from shared.errors import BusError, BusUnavailable, NoResponders
from shared.settings import Settings
from shared.telemetry import log

_LOG = log(__name__)

#: How long a call waits for its answer.
CALL_TIMEOUT_S = 2.0
#: How long a new connection may take to be made.
OPEN_TIMEOUT_S = 4.0
#: How long a connection that is given up may take to say goodbye.
_CLOSE_TIMEOUT_S = 1.0


class ApiError(Struct, frozen=True):
    """The ``error`` of a JetStream answer; ``err_code`` is in the server's ``errors.json``."""

    code: int
    err_code: int = 0
    description: str = ""


class Answer(Struct):
    """What every JetStream answer may carry."""

    error: ApiError | None = None


class ServerRefused(BusError):
    """The server answered with an error."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(f"{error.err_code or error.code}: {error.description}")
        self.err_code = error.err_code
        self.code = error.code


A = TypeVar("A", bound=Answer)


class Connection:
    """See the module. Make one with ``open``.

    Attributes:
        lost: it broke or was closed; nothing more will be sent or received.
        wakes: events set when it breaks, for whoever waits for something else on it.
    """

    def __init__(self) -> None:
        self.lost = False
        self._opened = False
        self.wakes: set[asyncio.Event] = set()
        self._client = Client()
        self._waiting: dict[str, asyncio.Future[Msg | None]] = {}
        self._tokens = itertools.count(1)
        self._inbox = ""

    @classmethod
    async def open(cls, settings: Settings, name: str) -> Connection:
        """Connect once.

        Raises:
            BusUnavailable: the server does not answer, or not to us.
        """
        self = cls()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._client.connect(
                    servers=[url.strip() for url in settings.nats_url.split(",")],
                    name=name,
                    token=settings.nats_token or None,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=2,
                    pending_size=0,
                    ping_interval=2,
                    error_cb=self._failed,
                    disconnected_cb=self._broke,
                    closed_cb=self._broke,
                )
                self._inbox = self._client.new_inbox() + "."
                await self._client.subscribe(self._inbox + "*", cb=self._answered)
                self._opened = True
        except (OSError, NatsError, TimeoutError) as error:
            await self.close()
            raise BusUnavailable(str(error) or type(error).__name__) from error
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The server's version, e.g. ``(2, 9, 10)``."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        return self._client.new_inbox()

    async def ask(
        self, subject: str, payload: bytes, timeout_s: float = CALL_TIMEOUT_S, headers: dict[str, Any] | None = None
    ) -> Msg:
        """Send a request and wait for its answer.

        Raises:
            NoResponders: nobody listens.
            BusUnavailable: no answer.
        """
        token = str(next(self._tokens))
        message = await self._answer_to(token, subject, payload, self._inbox + token, headers, timeout_s)
        if message.headers is not None and not message.data and message.headers.get("Status") == "503":
            raise NoResponders(subject)
        return message

    async def settled(self) -> None:
        """Wait until the server has taken what was sent before.

        By a message to ourselves: nats-py's ``flush`` writes its PING past what still waits to be sent, so that it
        returns before the server has seen a subscription made just before it.

        Raises:
            BusUnavailable: it does not answer.
        """
        token = str(next(self._tokens))
        await self._answer_to(token, self._inbox + token, b"", "", None, CALL_TIMEOUT_S)

    async def _answer_to(
        self, token: str, subject: str, payload: bytes, reply: str, headers: dict[str, Any] | None, timeout_s: float
    ) -> Msg:
        """Send a message and wait for one to our inbox under that token."""
        if self.lost:
            raise BusUnavailable
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Msg | None] = loop.create_future()
        self._waiting[token] = answer
        limit = loop.call_later(timeout_s, self._give_up, token)
        try:
            await self._send(subject, payload, reply, headers)
            message = await answer
        except NatsError as error:
            raise BusUnavailable(str(error)) from error
        finally:
            limit.cancel()
            self._waiting.pop(token, None)
        if message is None:
            raise BusUnavailable
        return message

    async def api(self, subject: str, body: object, kind: type[A], timeout_s: float = CALL_TIMEOUT_S) -> A:
        """Call JetStream's API.

        Raises:
            ServerRefused: it answered with an error.
            BusUnavailable: no answer, or JetStream is not there.
        """
        payload = b"" if body is None else msgspec.json.encode(body)
        try:
            message = await self.ask("$JS.API." + subject, payload, timeout_s)
        except NoResponders as error:
            raise BusUnavailable("JetStream does not answer") from error
        try:
            answer = msgspec.json.decode(message.data, type=kind)
        except msgspec.MsgspecError as error:
            raise BusUnavailable(f"an answer that cannot be read: {error}") from error
        if answer.error is not None:
            raise ServerRefused(answer.error)
        return answer

    async def tell(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send a message.

        Raises:
            BusUnavailable: there is no connection.
        """
        if self.lost:
            raise BusUnavailable
        try:
            await self._send(subject, payload, reply, None)
        except NatsError as error:
            raise BusUnavailable(str(error)) from error

    async def _send(self, subject: str, payload: bytes, reply: str, headers: dict[str, Any] | None) -> None:
        """Publish. nats-py swallows a cancellation that meets it waiting for room to write; it is raised here."""
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        await self._client.publish(subject, payload, reply=reply, headers=headers)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError

    async def listen(self, subject: str, take: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Call ``take`` with each message of the subject, one after the other.

        Raises:
            BusUnavailable: there is no connection.
        """
        if self.lost:
            raise BusUnavailable
        try:
            return await self._client.subscribe(subject, cb=take)
        except NatsError as error:
            raise BusUnavailable(str(error)) from error

    async def unlisten(self, subscription: Subscription) -> None:
        """End ``listen``."""
        if not self.lost:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    async def close(self) -> None:
        """Give it up; never raises because the server is away."""
        self._mark_lost()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._client.close()
        except (OSError, NatsError, TimeoutError) as error:
            _LOG.debug("a connection ended without a goodbye", error=str(error) or type(error).__name__)
        finally:
            self._abort()

    def _abort(self) -> None:
        """Drop the socket and what it had not sent. nats-py has no call for it: its own close waits for a peer that
        hangs to read everything, and would leave the socket open, to be read from later."""
        writer = getattr(getattr(self._client, "_transport", None), "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            writer.transport.abort()

    def _mark_lost(self) -> None:
        if self.lost:
            return
        self.lost = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)
        for wake in self.wakes:
            wake.set()

    def _give_up(self, token: str) -> None:
        answer = self._waiting.get(token)
        if answer is not None and not answer.done():
            answer.set_result(None)

    async def _answered(self, message: Msg) -> None:
        answer = self._waiting.get(message.subject[len(self._inbox) :])
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _broke(self) -> None:
        self._mark_lost()

    async def _failed(self, error: Exception) -> None:
        _LOG.debug("the bus reports", error=str(error) or type(error).__name__)
        if self._opened and not self._client.is_connected:  # while opening, another server may still answer
            self._mark_lost()
