"""Deliveries, made. Every replica does this; none is needed for another's.

    the job ends ──create──▶ deliveries: pending ──claim──▶ pending, held by one gateway for claim_s
                                  ▲      │                     │ try
                                  │      │                     ├── taken ──────▶ delivered (written first), then purged
                                  │      └─ expired while its  ├── not taken ──▶ pending, due later
                                  │         receiver is down   │
                                  └── replay ── given_up ◀─────┴── final, or too old

Who may try is settled by a compare-and-set (the claim), so in ordinary life there is one try at a time. A gateway that
dies in a try leaves a claim behind; every other one takes the delivery over once it has seen that claim unchanged for
``claim_s``, by its own clock. The receiver may then hear it twice, with the same id.

A delivery may be created again after it was made, by a gateway that was late: so whoever claims one that it sees for
the first time looks whether ``delivered`` has it. That bucket is written before the purge.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from gateway.live import Live
from gateway.loops import forever
from gateway.webhooks.book import Book, Known
from gateway.webhooks.lanes import Lanes
from gateway.webhooks.metrics import WebhookMetrics
from gateway.webhooks.outcomes import AGAIN_S, Outcomes
from gateway.webhooks.payload import Payloads
from gateway.webhooks.schedule import Failed, Verdict
from gateway.webhooks.secret_versions import SecretVersions
from gateway.webhooks.sending import Addresses, Sender
from gateway.webhooks.signing import headers
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusError, BusUnavailable, WrongRevision
from shared.messages import Delivery, DeliveryState, encode
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import ADMISSION_SHARE, DELIVERED, DELIVERIES
from shared.webhooks import receiver_of

_LOG = log(__name__)

#: A claim outlives the longest try by so much, for the writes before and after it.
CLAIM_MARGIN_S = 10.0
#: Whoever made a delivery or tried it last goes first; the others come so much later, if it did not.
HEAD_START_S = 2.0
#: After a fault of ours.
_LATER_S = 5.0
_LOOK_EVERY_S, _PRUNE_EVERY_S = 10.0, 3600.0
#: How long tries that are under way are waited for at the end.
_GRACE_S = 1.0


class Dispatcher:
    """Makes deliveries.

    Args:
        name: of this start of this gateway.
        chance: random numbers, 0 to 1.
    """

    def __init__(
        self,
        bus: Bus,
        live: Live,
        settings: Settings,
        clock: Clock,
        name: str,
        secrets: SecretVersions,
        payloads: Payloads,
        sender: Sender,
        addresses: Addresses,
        metrics: WebhookMetrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._deliveries = bus.bucket(DELIVERIES.name)
        self._delivered = bus.bucket(DELIVERED.name)
        self._book: Book = live.deliveries
        self._clock = clock
        self._name = name
        self._secrets = secrets
        self._payloads = payloads
        self._sender = sender
        self._addresses = addresses
        self._retry_s = settings.webhook_retry_s
        self._claim_s = settings.webhook_timeout_s + CLAIM_MARGIN_S
        self.lanes = Lanes()
        self._outcomes = Outcomes(bus, self._book, self.lanes, clock, metrics, self._retry_s, chance, self._again)
        self._wake = asyncio.Event()
        self._pruned = clock.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._tries: set[asyncio.Task[None]] = set()
        self._claims: dict[str, Known] = {}
        self._book.news, self._book.made = self._changed, self.expect

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, ready: Awaitable[None]) -> None:
        """Begin; with tries once the secrets are known."""
        loops = (self._dispatch(ready), forever("room for webhooks", self._clock, self._watch_room))
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """End: tries under way get a moment, and what is still claimed is let go for others to take at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tries:
            await asyncio.wait(self._tries, timeout=_GRACE_S)
        for task in self._tries:
            task.cancel()
        await asyncio.gather(*self._tries, return_exceptions=True)
        await asyncio.gather(*(self._let_go(key, claimed) for key, claimed in self._claims.items()))

    async def _let_go(self, key: str, claimed: Known) -> None:
        free = replace(claimed.delivery, by="", claim_s=0.0, age_s=self._book.age_s(claimed))
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._deliveries.update(key, encode(free), claimed.revision)
        except (BusError, TimeoutError) as error:
            _LOG.debug("a claim is left to run out", key=key, error=type(error).__name__)

    # --- when --------------------------------------------------------------------------------------------------------

    def _changed(self, key: str, known: Known | None) -> None:
        """What is known of a delivery changed."""
        if known is None or known.delivery.state is not DeliveryState.PENDING:
            self.lanes.drop(key)
            return
        delivery, now = known.delivery, self._clock.monotonic()
        held = delivery.claim_s > 0 and delivery.by != self._name
        if held:
            due = now + delivery.claim_s  # from when it was seen, whatever the broker's clock says
        elif delivery.claim_s > 0:
            due = now  # this process's own, and no try is under way: its answer was lost
        else:
            due = known.written + delivery.due_s
            due += 0.0 if delivery.by in ("", self._name) else HEAD_START_S
        until = known.written - delivery.age_s + self._retry_s
        self.lanes.put(key, delivery.tenant, receiver_of(delivery.url), due, until, held=held)
        self._wake.set()

    def expect(self, delivery: Delivery) -> None:
        """Its receiver is said to take webhooks: it has taken one, or somebody asks for one once more."""
        self.lanes.up(delivery.tenant, receiver_of(delivery.url))
        self._wake.set()

    def _again(self, key: str, delay_s: float = 0.0) -> None:
        """Queue it as it is known, after a try that was none."""
        known = self._book.open.get(key)
        if known is None:
            return
        self._changed(key, known)
        delivery = known.delivery
        if delay_s and delivery.state is DeliveryState.PENDING:
            until = known.written - delivery.age_s + self._retry_s
            self.lanes.put(key, delivery.tenant, receiver_of(delivery.url), self._clock.monotonic() + delay_s, until)

    # --- tries -------------------------------------------------------------------------------------------------------

    async def _dispatch(self, ready: Awaitable[None]) -> None:
        await ready
        await forever("webhooks", self._clock, self._begin_tries)

    async def _begin_tries(self) -> None:
        self._wake.clear()
        for key in self.lanes.take(self._clock.monotonic()):
            task = asyncio.create_task(self._try(key))
            self._tries.add(task)
            task.add_done_callback(self._tries.discard)
        await self._until(self.lanes.next_at())

    async def _until(self, at: float | None) -> None:
        """Wait for that time or for news."""
        if at is None:
            await self._wake.wait()
            return
        waits = [
            asyncio.ensure_future(self._wake.wait()),
            asyncio.ensure_future(self._clock.sleep(max(0.0, at - self._clock.monotonic()))),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _try(self, key: str) -> None:
        try:
            claimed = await self._claim(key)
            if claimed is not None:
                self._claims[key] = claimed
                verdict = await self._send(claimed.delivery)
                del self._claims[key]  # from here on it is written down, not let go
                self._wake.set()
                await self._outcomes.settle(key, claimed, verdict)
        except Exception as error:
            if not isinstance(error, BusError):
                _LOG.exception("a webhook could not be tried", key=key)
            self._claims.pop(key, None)
            self.lanes.left(key)
            self._again(key, AGAIN_S if isinstance(error, BusError) else _LATER_S)
        self._wake.set()

    async def _claim(self, key: str) -> Known | None:
        """The delivery, held by this gateway; None if it is not to be tried.

        Raises:
            BusUnavailable: it may be held.
        """
        known = self._book.open.get(key)
        if known is None or known.delivery.state is not DeliveryState.PENDING:
            self.lanes.left(key)
            return None
        before = known.delivery
        mine = replace(before, by=self._name, claim_s=self._claim_s, due_s=0.0, age_s=self._book.age_s(known))
        try:
            revision = await self._deliveries.update(key, encode(mine), known.revision)
        except WrongRevision:
            self.lanes.left(key)
            await self._outcomes.reread(key)
            return None
        claimed = self._book.put(key, mine, revision)
        if before.tries == 0 or before.claim_s > 0:
            made = await self._book.was_made(key)
            if made is not None and made.round >= mine.round:
                self.lanes.left(key)
                self._book.settle(key, made)
                await self._deliveries.purge(key, revision)
                return None
        return claimed

    async def _send(self, delivery: Delivery) -> Verdict:
        try:
            body = await self._payloads.body(delivery)
            signed = headers(self._secrets.signing(delivery.tenant), delivery.id, int(self._clock.wall()), body)
            return await self._sender.send(delivery.url, body, signed)
        except BusUnavailable:
            raise
        except Exception:
            # Whatever it is, it ends: with the time that there is for tries.
            _LOG.exception("a webhook could not be made or sent", job=delivery.job)
            return Failed(error="it could not be made or sent")

    # --- room --------------------------------------------------------------------------------------------------------

    async def _watch_room(self) -> None:
        """No job with a webhook is taken while the bucket is nearly full: those that are owed must be. What the bucket
        has forgotten by its age, which followers do not hear, is forgotten here too."""
        if self._clock.monotonic() - self._pruned >= _PRUNE_EVERY_S:
            self._pruned = self._clock.monotonic()
            self._book.prune()
        try:
            _, size = await self._deliveries.usage()
            self._addresses.full = size >= ADMISSION_SHARE * DELIVERIES.max_bytes
        except BusError as error:
            _LOG.debug("the bucket's size is unknown", error=type(error).__name__)
        await self._clock.sleep(_LOOK_EVERY_S)
