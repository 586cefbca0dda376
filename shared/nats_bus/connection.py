"""One connection to a NATS server, from its opening to its first break.

nats-py can reconnect by itself, but then what was buffered may be sent after its caller was told that it failed, and a
stalled socket can hold the reconnection for ever. So a connection is used once: when it breaks, all that wait on it
fail at once, what it had not sent is gone with it, and the bus opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TypeVar

import msgspec
import nkeys
from msgspec import Struct
from nats.errors import Error as NatsError
from nats.errors import SecureConnRequiredError

from shared.errors import BusError, BusUnavailable, NoResponders, NotPermitted, SettingsError
from shared.nats_bus.answers import Answers
from shared.nats_bus.client import DirectClient, Msg, Take
from shared.nats_bus.refusals import REFUSED
from shared.settings import Settings, variable
from shared.telemetry import log
from shared.topology import reply_subject

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
#: Subjects of a connection whose refusal is logged, each once.
_MOST_TOLD = 100
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


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """How connections are encrypted; None: only if the server wants that, and then by the system's certificates.

    Raises:
        SettingsError: a file is missing, or not what it should be.
    """
    if not settings.nats_ca and not settings.nats_cert:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.nats_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{variable('nats_ca')}: {settings.nats_ca}: {error}") from error
    if settings.nats_cert:
        try:
            context.load_cert_chain(settings.nats_cert, settings.nats_key or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"{variable('nats_cert')}: {settings.nats_cert}: {error}") from error
    return context


def check_seed(settings: Settings) -> None:
    """Refuse what is not the seed of an nkey.

    Raises:
        SettingsError: it is not.
    """
    if not settings.nats_nkey:
        return
    try:
        nkeys.from_seed(bytearray(settings.nats_nkey.encode()))
    except (ValueError, nkeys.NkeysError) as error:
        raise SettingsError(f"{variable('nats_nkey')}: not the seed of an nkey") from error


def must_encrypt(settings: Settings) -> bool:
    """Whether nothing may be said to a server that does not encrypt."""
    return bool(settings.nats_ca) or all(url.strip().startswith("tls:") for url in settings.nats_url.split(","))


async def knock(settings: Settings) -> str:
    """Show a server these credentials and go again; its version.

    Raises:
        BusUnavailable: no server answers, or not to us; says why.
        SettingsError: a certificate cannot be read, or the nkey is none.
    """
    connection = await Connection.open(settings, "knock", listens=False)
    try:
        return ".".join(map(str, connection.server_version))
    finally:
        await connection.close()


def advice(error: BusUnavailable) -> str:
    """What somebody should look at who was told that while a connection was made; empty if nothing is known."""
    match error.__cause__:
        case SecureConnRequiredError():
            return f"it does not encrypt, and {variable('nats_ca')} or tls:// says that it must"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not by an authority of {variable('nats_ca')}, or not for that name"
        case NatsError() as cause if type(cause) is NatsError:  # the server's own words at its door
            return "it does not know what it was shown"
        case _:
            return ""


class Connection:
    """See the module. Make one with ``open``.

    Attributes:
        lost: it broke or was closed; nothing more will be sent or received.
        wakes: events set when it breaks, for whoever waits for something else on it.
    """

    def __init__(self, service: str = "admin", *, encrypted: bool = False) -> None:
        self.lost = False
        self.wakes: set[asyncio.Event] = set()
        self._client = DirectClient(self._denied, encrypted=encrypted)
        self._opened = False
        self._service = service
        self._answers = Answers(asyncio.get_running_loop())
        self._tokens = 0
        self._inbox = ""
        self._own = ""
        self._told_denied: set[str] = set()

    @classmethod
    async def open(cls, settings: Settings, name: str, service: str = "admin", *, listens: bool = True) -> Connection:
        """Connect once, to any of the servers.

        Args:
            service: whose answers these are: no other may listen to them.
            listens: to answers; nothing can be asked without.

        Raises:
            BusUnavailable: no server answers, or not to us.
            SettingsError: a certificate cannot be read, or the nkey is none.
        """
        self = cls(service, encrypted=must_encrypt(settings))
        context = tls_of(settings)
        check_seed(settings)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._client.connect(
                    servers=[url.strip() for url in settings.nats_url.split(",")],
                    name=name,
                    token=settings.nats_token or None,
                    user=settings.nats_user or None,
                    password=settings.nats_password or None,
                    nkeys_seed_str=settings.nats_nkey or None,
                    tls=context,
                    inbox_prefix=f"_INBOX.{service}",
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
                inbox = self.inbox()
                self._inbox = inbox + "."
                self._own = f"{service}.{inbox.rpartition('.')[2]}"
                if listens:
                    self._client.listen(self._inbox + "*", self._answers.came)
                if listens and (answers := reply_subject("worker.*.any", self._own)):
                    self._client.listen(answers + ".*", self._answers.came)
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
        self._answers.give_up()
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
        self,
        subject: str,
        payload: bytes = b"",
        timeout_s: float = CALL_TIMEOUT_S,
        head: bytes = b"",
    ) -> Msg:
        """Send a request and wait for its answer.

        Args:
            head: of the request (``client.make_head``).

        Raises:
            NoResponders: nobody listens.
            NotPermitted: the server did not take it from these credentials.
            BusUnavailable: no answer.
        """
        self._tokens += 1
        prefix = reply_subject(subject, self._own)
        reply = f"{prefix}.{self._tokens}" if prefix is not None else f"{self._inbox}{self._tokens}"
        self._send(subject, payload, reply, head)
        waiting = self._answers.expect(reply, subject, timeout_s)
        try:
            message = await waiting.answer
        finally:
            self._answers.forget(reply)
        if message is None:
            raise NotPermitted(f"not permitted: {subject}") if waiting.denied else BusUnavailable
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
        self._send(subject, payload, reply)

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

    def _send(self, subject: str, payload: bytes, reply: str, head: bytes = b"") -> None:
        self._check()
        if len(payload) > self._client.max_payload:
            raise BusUnavailable(f"a message of {len(payload)} bytes; the server takes {self._client.max_payload}")
        self._client.tell(subject, payload, reply, head)

    def _check(self) -> None:
        if self.lost:
            raise BusUnavailable
        if self._client.unsent > _MAX_UNSENT:
            raise BusUnavailable("the server does not read")

    def _denied(self, what: str, subject: str) -> None:
        """The server refused a message or a subscription; it names the subject, in letters of any size."""
        REFUSED.labels(what).inc()
        if subject not in self._told_denied and len(self._told_denied) < _MOST_TOLD:
            self._told_denied.add(subject)
            _LOG.error("not_permitted", what=what, subject=subject, service=self._service)
        self._answers.denied(subject)
