"""One connection to a NATS server, from its opening to its first break.

nats-py can reconnect by itself, but then what was buffered may be sent after its caller was told that it failed, and a
stalled socket can hold the reconnection for ever. So a connection is used once: when it breaks, all that wait on it
fail at once, what it had not sent is gone with it, and the bus opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

import msgspec
from msgspec import Struct
from nats.errors import Error as NatsError

from shared.errors import BusError, BusUnavailable, NoResponders
from shared.nats_bus.client import DirectClient, Msg, Take
from shared.settings import Settings
from shared.telemetry import log

_LOG = log(__name__)

#: How long a call waits for its answer.
CALL_TIMEOUT_S = 2.0
#: How long a new connection may take to be made.
OPEN_TIMEOUT_S = 4.0
#: The same of one server of several.
_TRY_TIMEOUT_S = 2
#: How long a connection that is given up may take to say goodbye.
_CLOSE_TIMEOUT_S = 1.0
#: Seconds between signs of life that are asked of the server.
_PING_S = 2
#: Bytes that wait for a server which does not read them.
_MAX_UNSENT = 16 * 1024 * 1024


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
        self.wakes: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()
        self._client = DirectClient()
        self._opened = False
        self._waiting: dict[str, asyncio.Future[Msg | None]] = {}
        self._tokens = 0
        self._inbox = ""

    @classmethod
    async def open(cls, settings: Settings, name: str) -> Connection:
        """Connect once, to any of the servers.

        Raises:
            BusUnavailable: no server answers, or not to us.
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
                    connect_timeout=_TRY_TIMEOUT_S,
                    ping_interval=_PING_S,
                    error_cb=self._failed,
                    disconnected_cb=self._broke,
                    closed_cb=self._broke,
                )
                self._opened = True
                self._inbox = self.inbox() + "."
                self._client.listen(self._inbox + "*", self._answered)
                await self.settled()
        except (OSError, NatsError, TimeoutError) as error:
            await self.close()
            raise BusUnavailable(str(error) or type(error).__name__) from error
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End it in good order; never raises because the server is away. What is not sent a moment later is dropped."""
        if not self.lost:
            self._client.flush_now()
        self._mark_lost()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._client.close()
        except (OSError, NatsError, TimeoutError) as error:
            _LOG.debug("a connection ended without a goodbye", error=str(error) or type(error).__name__)
        finally:
            self._client.abort()

    def abort(self) -> None:
        """Drop it, and what it has not sent."""
        self._mark_lost()
        self._client.abort()

    def _mark_lost(self) -> None:
        if self.lost:
            return
        self.lost = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)
        for wake in self.wakes:
            wake.set()

    async def _broke(self) -> None:
        self._mark_lost()

    async def _failed(self, error: Exception) -> None:
        _LOG.debug("the bus reports", error=str(error) or type(error).__name__)
        if self._opened and not self._client.is_connected:  # while opening, another server may still answer
            self._mark_lost()

    # --- for the bus -------------------------------------------------------------------------------------------------

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The server's version, e.g. ``(2, 9, 10)``."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        return self._client.new_inbox()

    async def ask(
        self, subject: str, payload: bytes, timeout_s: float = CALL_TIMEOUT_S, headers: dict[str, str] | None = None
    ) -> Msg:
        """Send a request and wait for its answer.

        Raises:
            NoResponders: nobody listens.
            BusUnavailable: no answer.
        """
        self._tokens += 1
        token = str(self._tokens)
        self._send(subject, payload, self._inbox + token, headers)
        answer: asyncio.Future[Msg | None] = self._loop.create_future()
        self._waiting[token] = answer
        limit = self._loop.call_later(timeout_s, _give_up, answer)
        try:
            message = await answer
        finally:
            limit.cancel()
            del self._waiting[token]
        if message is None:
            raise BusUnavailable
        if message.head and not message.data and message.status == "503":
            raise NoResponders(subject)
        return message

    async def settled(self) -> None:
        """Wait until the server has taken what was sent before.

        Raises:
            BusUnavailable: it does not answer.
        """
        self._check()
        try:
            await self._client.flush(timeout=int(CALL_TIMEOUT_S))
        except (NatsError, OSError) as error:
            raise BusUnavailable(str(error)) from error
        if self.lost:
            raise BusUnavailable

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

    def tell(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send a message.

        Raises:
            BusUnavailable: there is no connection.
        """
        self._send(subject, payload, reply, None)

    def listen(self, subject: str, take: Take) -> int:
        """Call ``take`` with each message of the subject, in the order in which they come; what ``unlisten`` takes.

        Raises:
            BusUnavailable: there is no connection.
        """
        self._check()
        return self._client.listen(subject, take)

    def unlisten(self, sid: int) -> None:
        """End ``listen``."""
        with contextlib.suppress(BusUnavailable):
            self._check()
            self._client.unlisten(sid)

    def _send(self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        self._check()
        if len(payload) > self._client.max_payload:
            raise BusUnavailable(f"a message of {len(payload)} bytes; the server takes {self._client.max_payload}")
        self._client.tell(subject, payload, reply, headers)

    def _check(self) -> None:
        if self.lost:
            raise BusUnavailable
        if self._client.unsent > _MAX_UNSENT:
            raise BusUnavailable("the server does not read")

    def _answered(self, message: Msg) -> None:
        answer = self._waiting.get(message.subject[len(self._inbox) :])
        if answer is not None and not answer.done():
            answer.set_result(message)


def _give_up(answer: asyncio.Future[Msg | None]) -> None:
    if not answer.done():
        answer.set_result(None)
