"""One connection to a NATS server, from its opening to its first break.

A connection is used once: when it breaks, all that wait on it fail at once, what it had not sent is gone with it, and
the bus opens another. A client that reconnects by itself would send what it had buffered after its caller was told that
it failed. The protocol is ``wire``'s; what is written in one turn of the loop leaves with one call of the system, and
what arrives is handed on in the turn in which it was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
from collections import deque
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from shared.errors import BusError, BusUnavailable, NoResponders
from shared.nats_bus import wire
from shared.nats_bus.wire import Greeting, Info, Msg, Reader, ServerError, WireError, Word
from shared.settings import Settings
from shared.telemetry import log

_LOG = log(__name__)

#: How long a call waits for its answer.
CALL_TIMEOUT_S = 2.0
#: How long a new connection may take to be made.
OPEN_TIMEOUT_S = 4.0
#: The same of one server of several.
_TRY_TIMEOUT_S = 2.0
#: How long a connection that is given up may take to send what it still has.
_CLOSE_TIMEOUT_S = 1.0
#: Bytes that wait for a server which does not read them.
_MAX_UNSENT = 16 * 1024 * 1024
_PORT = 4222


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
Take = Callable[[Msg], None]


class Connection(asyncio.Protocol):
    """See the module. Make one with ``open``.

    Attributes:
        lost: it broke or was closed; nothing more will be sent or received.
        wakes: events set when it breaks, for whoever waits for something else on it.
    """

    def __init__(self) -> None:
        self.lost = False
        self.wakes: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._unsent: list[bytes] = []
        self._info: asyncio.Future[Info | None] = self._loop.create_future()
        self._version = (0, 0, 0)
        self._max_payload = 0
        self._ended = asyncio.Event()
        self._complaint = ""
        self._pongs: deque[asyncio.Future[bool]] = deque()
        self._waiting: dict[str, asyncio.Future[Msg | None]] = {}
        self._takes: dict[int, Take] = {}
        self._tokens = 0
        self._sids = 0
        self._inbox = self.inbox() + "."

    # --- its life ----------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, settings: Settings, name: str) -> Connection:
        """Connect once, to any of the servers.

        Raises:
            BusUnavailable: no server answers, or not to us.
        """
        urls = [url.strip() for url in settings.nats_url.split(",")]
        why = "no server is named"
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                for url in random.sample(urls, len(urls)):
                    self = cls()
                    try:
                        async with asyncio.timeout(_TRY_TIMEOUT_S):
                            await self._open(url, settings.nats_token, name)
                        return self
                    except (OSError, ValueError, BusUnavailable) as error:  # a TimeoutError is an OSError
                        why = str(error) or self._complaint or type(error).__name__
                        self.abort()
                    except BaseException:
                        self.abort()
                        raise
        except TimeoutError:
            why = "no server answered in time"
        raise BusUnavailable(why)

    async def _open(self, url: str, token: str, name: str) -> None:
        to = urlsplit(url if "://" in url else f"nats://{url}")
        host = to.hostname or "127.0.0.1"
        await self._loop.create_connection(lambda: self, host, to.port or _PORT)
        info = await self._info
        if info is None:
            raise BusUnavailable(self._complaint)
        if info.tls_required or to.scheme == "tls":
            plain = cast("asyncio.WriteTransport", self._transport)
            context = ssl.create_default_context()
            tls = await self._loop.start_tls(plain, self, context, server_hostname=host)
            self._transport = cast("asyncio.Transport", tls)
        greeting = Greeting(name=name, version="1", auth_token=token)
        if to.password is not None:
            greeting.user, greeting.password = unquote(to.username or ""), unquote(to.password)
        elif to.username:
            greeting.auth_token = unquote(to.username)
        self._write(wire.connect(greeting) + wire.subscribe(self._inbox + "*", self._listen(self._answered)))
        await self.settled()

    async def close(self) -> None:
        """End it in good order; never raises because the server is away. What is not sent a moment later is dropped."""
        self._flush()
        self._mark_lost()
        if self._transport is None:
            return
        self._transport.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._ended.wait()
        except TimeoutError:
            _LOG.debug("a connection ended without a goodbye")
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop it, and what it has not sent."""
        self._mark_lost()
        if self._transport is not None:
            self._transport.abort()

    def _mark_lost(self) -> None:
        if self.lost:
            return
        self.lost = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(False)
        if not self._info.done():
            self._info.set_result(None)
        for wake in self.wakes:
            wake.set()

    # --- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not one by inheritance
        if self.lost:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            said = self._reader.feed(data)
        except WireError as error:
            self._complain(str(error))
            self.abort()
            return
        for one in said:
            match one:
                case Msg():
                    take = self._takes.get(one.sid)
                    if take is not None:
                        take(one)
                case Word.PING:
                    self._write(wire.PONG)
                case Word.PONG:
                    pong = self._pongs.popleft() if self._pongs else None
                    if pong is not None and not pong.done():
                        pong.set_result(True)
                case Info():
                    self._max_payload = one.max_payload
                    if not self._info.done():
                        self._version = one.version_number
                        self._info.set_result(one)
                case ServerError():
                    self._complain(one.text)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._complain(str(error))
        self._ended.set()
        self._mark_lost()

    def _complain(self, text: str) -> None:
        self._complaint = text
        _LOG.debug("the bus reports", error=text)

    # --- for the bus -------------------------------------------------------------------------------------------------

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The server's version, e.g. ``(2, 9, 10)``."""
        return self._version

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"_INBOX.{secrets.token_hex(11)}"

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
        self._write(wire.PING)
        pong: asyncio.Future[bool] = self._loop.create_future()
        self._pongs.append(pong)
        limit = self._loop.call_later(CALL_TIMEOUT_S, _give_up, pong)
        try:
            if not await pong:
                raise BusUnavailable(self._complaint)
        finally:
            limit.cancel()

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
        sid = self._listen(take)
        self._write(wire.subscribe(subject, sid))
        return sid

    def _listen(self, take: Take) -> int:
        self._sids += 1
        self._takes[self._sids] = take
        return self._sids

    def unlisten(self, sid: int) -> None:
        """End ``listen``."""
        self._takes.pop(sid, None)
        with contextlib.suppress(BusUnavailable):
            self._write(wire.unsubscribe(sid))

    def _send(self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None) -> None:
        if len(payload) > self._max_payload:
            raise BusUnavailable(f"a message of {len(payload)} bytes; the server takes {self._max_payload}")
        self._write(wire.publish(subject, reply, payload, headers))

    def _write(self, data: bytes) -> None:
        if self.lost or self._transport is None:
            raise BusUnavailable
        if not self._unsent:
            if self._transport.get_write_buffer_size() > _MAX_UNSENT:
                raise BusUnavailable("the server does not read")
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self.lost and self._transport is not None:
            self._transport.write(b"".join(unsent))

    def _answered(self, message: Msg) -> None:
        answer = self._waiting.get(message.subject[len(self._inbox) :])
        if answer is not None and not answer.done():
            answer.set_result(message)


def _give_up(answer: asyncio.Future[Msg | None] | asyncio.Future[bool]) -> None:
    if not answer.done():
        cast("asyncio.Future[object]", answer).set_result(None)
