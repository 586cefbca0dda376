"""The bus over NATS: keeps one connection up, and everything that lives on it.

After each break a new connection is opened, the topology ensured (memory buckets vanish when the broker restarts), the
subscriptions made again, and only then do calls go through it. A JetStream round trip each second tells contact from
the mere look of it: a full disk or a stopped process leaves the socket open.

A *guest* (a worker) has its own keys and nothing else: it makes no topology, asks for no stream and follows none, but
waits for what gateways and schedulers make; its round trip is a read of a key of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine

from shared.bus import Handler, check_filter, check_key
from shared.clock import Clock, SystemClock
from shared.errors import BusError, BusUnavailable, NoResponders, SettingsError, TopologyError
from shared.nats_bus.bucket import NatsBucket
from shared.nats_bus.client import Msg
from shared.nats_bus.connection import Connection, ServerRefused
from shared.nats_bus.streams import StreamInfo, check_version, ensure, prefix_of, stream_of, try_to_store
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import BUCKETS, ORDERS, BucketSpec

_LOG = log(__name__)

PROBE_S = 1.0
#: Contact that was not confirmed for so long is none: the server hangs, or this process did.
CONTACT_GAP_S = 4.0
#: Probes that may fail in a row before the connection is given up.
_PROBES_FAILED = 2
_BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.4)


async def connect(
    settings: Settings,
    *,
    name: str,
    clock: Clock | None = None,
    specs: tuple[BucketSpec, ...] = BUCKETS,
    service: str = "admin",
    guest: str = "",
) -> NatsBus:
    """A bus that is connected, its buckets made; keeps trying until then, so bound it with ``asyncio.timeout``.

    Args:
        name: what the server's own monitoring calls this connection.
        specs: the buckets to make; ``shared.topology`` lists genfleet's.
        service: as whom: ``gateway``, ``scheduler``, or ``admin`` for an operator's own look.
        guest: as the worker of that name instead; buckets that are not there yet are no reason to wait.

    Raises:
        TopologyError: a bucket exists with other settings, or the server is too old.
        SettingsError: a certificate cannot be read, or the nkey is none.
    """
    bus = NatsBus(settings, name, clock or SystemClock(), specs, service=service, guest=guest)
    try:
        await bus.start()
    except BaseException:
        await bus.close()
        raise
    return bus


class NatsSubscription:
    """A handler on a subject, over every connection of the bus."""

    def __init__(self, bus: NatsBus, subject: str, handler: Handler) -> None:
        self.subject = subject
        self._bus = bus
        self._handler = handler
        self._on: tuple[Connection, int] | None = None

    def attach(self, connection: Connection) -> None:
        """Listen on that connection.

        Raises:
            BusUnavailable: it broke.
        """

        def take(message: Msg) -> None:
            self._bus.spawn(self._answer(connection, message))

        self._on = connection, connection.listen(self.subject, take)

    def is_on(self, connection: Connection) -> bool:
        """Whether it listens there."""
        return self._on is not None and self._on[0] is connection

    async def close(self) -> None:
        self._bus.subscriptions.discard(self)
        if self._on is not None:
            connection, number = self._on
            connection.unlisten(number)

    async def _answer(self, connection: Connection, message: Msg) -> None:
        try:
            reply = await self._handler(message.data)
        except Exception:
            _LOG.exception("a handler failed", subject=self.subject)
            return
        if reply is None or not message.reply:
            return
        try:
            connection.tell(message.reply, reply)
        except BusUnavailable:
            _LOG.info("an answer could not be sent", subject=self.subject)


class NatsBus:
    """``shared.bus.Bus``. Make one with ``connect``."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        clock: Clock,
        specs: tuple[BucketSpec, ...],
        *,
        service: str = "admin",
        guest: str = "",
    ) -> None:
        self.subscriptions: set[NatsSubscription] = set()
        self._settings = settings
        self._name = name
        self._clock = clock
        self._specs = tuple(spec for spec in specs if not guest or spec.of_worker)
        self._service = "worker" if guest else service
        self._guest = guest
        direct = bool(guest) or settings.nats_replicas == 1
        self._buckets = {spec.name: NatsBucket(self, spec, direct=direct, inspects=not guest) for spec in self._specs}
        self._connection: Connection | None = None
        self._closed = False
        self._turned = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ensuring = asyncio.Lock()
        self._since: float | None = None
        self._confirmed = 0.0
        #: The stream of which a message could not be stored lately.
        self._not_stored: str | None = None

    async def start(self) -> None:
        """Connect and make the topology."""
        self._keeper = asyncio.create_task(self._keep(), name=f"bus {self._name}")
        await self._ready

    # the port

    def bucket(self, name: str) -> NatsBucket:
        try:
            return self._buckets[name]
        except KeyError:
            raise TopologyError(f"no bucket {name}") from None

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        check_key(subject)
        message = await self.connection().ask(subject, payload, timeout_s)
        return message.data

    async def publish(self, subject: str, payload: bytes) -> None:
        check_key(subject)
        try:
            self.connection().tell(subject, payload)
        except BusUnavailable:
            _LOG.debug("a message was lost", subject=subject)

    async def subscribe(self, subject: str, handler: Handler) -> NatsSubscription:
        check_filter(subject)
        subscription = NatsSubscription(self, subject, handler)
        self.subscriptions.add(subscription)
        connection = self._connection
        if connection is not None:
            try:
                subscription.attach(connection)
                await connection.settled()
            except BusUnavailable:
                _LOG.debug("subscribes when the connection is back", subject=subject)
        return subscription

    async def round_trip(self) -> None:
        connection = self.connection()
        try:
            await self._probe(connection)
        except NoResponders as error:
            raise BusUnavailable("the buckets are not there") from error
        if not await self._stores(connection):
            raise BusUnavailable("the broker cannot store anything")

    def contact_s(self) -> float:
        if self._connection is None or self._connection.lost:
            return 0.0
        now = self._clock.monotonic()
        if self._since is None or now - self._confirmed > CONTACT_GAP_S:
            return 0.0
        return now - self._since

    async def close(self) -> None:
        self._closed = True
        self._since = None
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        handling = {task for task in self._tasks if task is not asyncio.current_task()}
        for task in handling:
            task.cancel()
        connection, self._connection = self._connection, None
        self._turned.set()
        if connection is not None:
            await connection.close()
        if handling:
            await asyncio.wait(handling)

    # what buckets and followers use

    def connection(self) -> Connection:
        if self._connection is None or self._connection.lost:
            raise BusUnavailable
        return self._connection

    async def live(self) -> Connection | None:
        while not self._closed:
            if self._connection is not None and not self._connection.lost:
                return self._connection
            self._turned.clear()
            await self._turned.wait()
        return None

    async def ensure(self, connection: Connection) -> None:
        """Make the topology again.

        Raises:
            BusUnavailable: it cannot be made.
        """
        if self._guest:
            return  # it is made by others, and the caller finds out whether it has been
        async with self._ensuring:
            try:
                await ensure(connection, self._specs, self._settings.nats_replicas)
            except (ServerRefused, TopologyError) as error:
                raise BusUnavailable(str(error)) from error

    def cannot_store(self, stream: str) -> None:
        if self._not_stored is None:
            _LOG.error("the broker cannot store", stream=stream)
        self._not_stored = stream
        self._since = None

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Let a handler run on its own, as long as the bus lives."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # keeping the connection

    async def _keep(self) -> None:
        failures = 0
        while not self._closed:
            try:
                connection = await self._open()
            except Exception as error:  # whatever it is, giving up would leave a process without a bus for good
                if isinstance(error, TopologyError | SettingsError) and not self._ready.done():
                    self._ready.set_exception(error)
                    return
                if not isinstance(error, BusError | OSError):
                    _LOG.exception("the bus cannot be reached, for an unknown reason")
                elif failures in (0, 10) or failures % 100 == 0:
                    _LOG.warning("the bus cannot be reached", error=str(error))
                pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                continue
            failures = 0
            try:
                await self._watch(connection)
            except Exception:
                _LOG.exception("the bus cannot be watched")
            finally:
                self._since = None
                self._connection = None
                connection.abort()
            _LOG.warning("the bus was lost")

    async def _open(self) -> Connection:
        connection = await Connection.open(self._settings, self._name, self._service)
        try:
            if self._guest:
                check_version(connection.server_version, 1)
            else:
                await ensure(connection, self._specs, self._settings.nats_replicas)
            for subscription in tuple(self.subscriptions):
                subscription.attach(connection)
            await connection.settled()
        except BaseException:
            connection.abort()
            raise
        self._connection = connection
        # A subscription made while we were at it saw no connection.
        for subscription in tuple(self.subscriptions):
            if not subscription.is_on(connection):
                subscription.attach(connection)
        self._since = self._confirmed = self._clock.monotonic()
        self._turned.set()
        if not self._ready.done():
            self._ready.set_result(None)
        return connection

    async def _watch(self, connection: Connection) -> None:
        """Probe until the connection breaks or is good for nothing."""
        broken, failed = asyncio.Event(), 0
        connection.wakes.add(broken)
        while not self._closed and not connection.lost and failed < _PROBES_FAILED:
            try:
                async with asyncio.timeout(PROBE_S):
                    await broken.wait()
                return
            except TimeoutError:
                pass
            asked = self._clock.monotonic()
            try:
                await self._probe(connection)
            except NoResponders:  # it lives, and has not what it should have yet
                failed, self._since = 0, None
                continue
            except BusUnavailable:
                failed += 1
                self._since = None
                continue
            failed = 0
            if not await self._stores(connection):
                self._since = None
                continue
            if self._since is None or asked - self._confirmed > CONTACT_GAP_S:
                self._since = asked
            self._confirmed = self._clock.monotonic()

    async def _probe(self, connection: Connection) -> None:
        """Ask for a stream; of a cluster for all of them, as each has a leader of its own, and may be without one while
        others answer.

        Raises:
            BusUnavailable: no answer.
            NoResponders: a guest's bucket is not there.
        """
        if self._guest:
            await connection.ask(f"$JS.API.DIRECT.GET.{stream_of(ORDERS.name)}.{prefix_of(ORDERS.name)}{self._guest}.0")
            return
        asked = self._specs if self._settings.nats_replicas > 1 else self._specs[:1]
        try:
            await asyncio.gather(
                *(connection.api(f"STREAM.INFO.{stream_of(spec.name)}", None, StreamInfo) for spec in asked)
            )
        except ServerRefused as error:
            raise BusUnavailable(str(error)) from error

    async def _stores(self, connection: Connection) -> bool:
        """Whether the server can write to its disk, as far as is known. A 2.10 server whose disk is full answers
        everything else; a consumer that it is to write down tells whether there is room again, and disturbs nobody."""
        if self._not_stored is None or self._guest:
            return True
        try:
            await try_to_store(connection, self._not_stored)
        except (BusUnavailable, ServerRefused):
            return False
        _LOG.info("the broker stores again")
        self._not_stored = None
        return True
