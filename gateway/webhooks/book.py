"""What this gateway knows of deliveries: those that are owed or given up, all of them; those that were made, the ones
that it heard of lately. The others are read when somebody asks.

A delivery that was made leaves ``deliveries`` without a trace (a purge, which followers do not hear of) after it was
written to ``delivered``; that bucket is followed only from when this gateway began. So a start reads what is open and
not what was ever told.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from sortedcontainers import SortedSet

from gateway.broker_clock import BrokerClock
from gateway.entries import decoded
from gateway.schema.jobs import WebhookView
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BusUnavailable
from shared.messages import TERMINAL, Delivery, DeliveryState, JobRecord
from shared.telemetry import log
from shared.topology import DELIVERED, DELIVERED_MARK, DELIVERIES, delivery_key
from shared.webhooks import shown

_LOG = log(__name__)

#: Deliveries that were made and are remembered.
REMEMBERED = 10_000
AGAIN_S = 1.0
#: Deliveries looked at for one page.
MOST_LOOKED_AT = 10_000
_READS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Known:
    """A delivery as last seen, at which revision, and when that was written: on this process's monotonic clock."""

    delivery: Delivery
    revision: int
    written: float


class Book:
    """Filled by the followers of the two buckets.

    Attributes:
        open: what is owed or given up, by key.
        hears: set once every delivery that is made will be heard of.
        news: told of every key whose delivery changed; None: it is owed no more.
        made: told of every delivery that is made just now, by whomever.
    """

    def __init__(self, bus: Bus, clock: Clock, broker_clock: BrokerClock) -> None:
        self._deliveries = bus.bucket(DELIVERIES.name)
        self._delivered = bus.bucket(DELIVERED.name)
        self._clock = clock
        self._broker_clock = broker_clock
        self.open: dict[str, Known] = {}
        self.keys: SortedSet = SortedSet()
        self._made: OrderedDict[str, Delivery] = OrderedDict()
        self.hears = asyncio.Event()
        self.news: Callable[[str, Known | None], None] = _nobody
        self.made: Callable[[Delivery], None] = _nobody_either

    # --- what the followers bring ------------------------------------------------------------------------------------

    def on_deliveries(self, batch: Batch) -> None:
        """Entries of ``deliveries``."""
        if batch.reset:
            for key in list(self.open):
                self.forget(key)
        for entry in batch.entries:
            self._broker_clock.saw(entry.timestamp)
            self.take(entry)

    async def follow_delivered(self) -> None:
        """Hear of deliveries that are made from now on, until cancelled."""
        while True:
            try:
                mark = await self._delivered.put(DELIVERED_MARK, b"")
                written = await self._delivered.get(DELIVERED_MARK)
                if written is not None:
                    self._broker_clock.saw(written.timestamp)  # all that is due is judged by it
                self.hears.set()
                batches = cast("AsyncGenerator[Batch, None]", self._delivered.follow(after=mark))
                async with aclosing(batches):
                    async for batch in batches:
                        for entry in batch.entries:
                            self._take_made(entry)
            except BusUnavailable:
                _LOG.debug("the deliveries that were made are not heard of yet")
            except Exception:
                _LOG.exception("a follower failed", bucket=DELIVERED.name)
            await self._clock.sleep(AGAIN_S)

    def take(self, entry: Entry) -> None:
        """An entry of ``deliveries``, from the follower or read."""
        known = self.open.get(entry.key)
        delivery = decoded(entry, Delivery)
        if delivery is None or (known is not None and entry.revision <= known.revision):
            return
        made = self._made.get(entry.key)
        if made is not None and made.round >= delivery.round:
            return  # late: it was made meanwhile
        written = self._clock.monotonic() - self._broker_clock.since(entry.timestamp)
        self._put(entry.key, Known(delivery, entry.revision, written))

    def _take_made(self, entry: Entry) -> None:
        if entry.key == DELIVERED_MARK:
            return
        delivery = decoded(entry, Delivery)
        if delivery is not None:
            self.settle(entry.key, delivery)
            self.made(delivery)

    # --- what this process wrote -------------------------------------------------------------------------------------

    def put(self, key: str, delivery: Delivery, revision: int) -> Known:
        """It wrote this just now."""
        known = Known(delivery, revision, self._clock.monotonic())
        before = self.open.get(key)
        if before is None or before.revision < revision:
            self._put(key, known)
        return known

    def keep_in_mind(self, key: str, delivery: Delivery, revision: int) -> None:
        """It would have written this over that revision, and there was no room."""
        before = self.open.get(key)
        if before is not None and before.revision == revision:
            self._put(key, Known(delivery, revision, self._clock.monotonic()))

    def settle(self, key: str, delivery: Delivery) -> None:
        """It was made."""
        self._made[key] = delivery
        self._made.move_to_end(key)
        if len(self._made) > REMEMBERED:
            self._made.popitem(last=False)
        known = self.open.get(key)
        if known is not None and known.delivery.round <= delivery.round:
            self.forget(key)

    def forget(self, key: str) -> None:
        """It is not owed."""
        if self.open.pop(key, None) is not None:
            self.keys.discard(key)
            self.news(key, None)

    def prune(self) -> None:
        """Forget what the bucket has forgotten by its age."""
        assert DELIVERIES.ttl_s is not None
        for key, known in list(self.open.items()):
            if self.unchanged_s(known) > DELIVERIES.ttl_s:
                self.forget(key)

    def _put(self, key: str, known: Known) -> None:
        self.open[key] = known
        self.keys.add(key)
        self.news(key, known)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def knows(self, key: str) -> bool:
        """Whether there is, or was lately, such a delivery."""
        return key in self.open or key in self._made

    def age_s(self, known: Known) -> float:
        """How old the delivery is now."""
        return known.delivery.age_s + self.unchanged_s(known)

    def unchanged_s(self, known: Known) -> float:
        """Seconds since its last change."""
        return max(0.0, self._clock.monotonic() - known.written)

    def page(
        self, tenant: str | None, wanted: Callable[[Known], bool], after: str | None, limit: int
    ) -> tuple[list[Known], str | None]:
        """At most so many of what is open, by key, and where the next page begins; None at the end.

        Args:
            tenant: None for all.
        """
        lowest, highest = ("", None) if tenant is None else (f"{tenant}.", f"{tenant}/")
        keys = self.keys.irange(max(lowest, after or ""), highest, inclusive=(False, False))
        found: list[Known] = []
        last: str | None = None
        for looked, key in enumerate(keys):
            if len(found) == limit or looked == MOST_LOOKED_AT:
                return found, last
            last = key
            known = self.open[key]
            if wanted(known):
                found.append(known)
        return found, None

    async def was_made(self, key: str) -> Delivery | None:
        """The delivery as it was made, if it was and is remembered by this process or by the bucket.

        Raises:
            BusUnavailable: it does not say.
        """
        entry = await self._delivered.get(key)
        return None if entry is None else decoded(entry, Delivery)

    async def learn(self, records: Iterable[JobRecord]) -> None:
        """Read what ``view`` needs of these jobs and this process has not heard of."""
        keys = [
            key
            for record in records
            if record.webhook_url is not None and record.state in TERMINAL
            if not self.knows(key := delivery_key(record.tenant, record.id))
        ]
        for start in range(0, len(keys), _READS_AT_ONCE):
            try:
                await asyncio.gather(*(self._learn(key) for key in keys[start : start + _READS_AT_ONCE]))
            except BusUnavailable:
                return  # the views say that it is unknown

    async def _learn(self, key: str) -> None:
        made = await self.was_made(key)
        if made is not None:
            self.settle(key, made)

    def view(self, record: JobRecord, *, recent: bool) -> WebhookView | None:
        """What the job's view says of its webhook.

        Args:
            recent: the job has not been archived: what is not known of its webhook is about to be.
        """
        if record.webhook_url is None:
            return None
        key = delivery_key(record.tenant, record.id)
        known = self.open.get(key)
        delivery = known.delivery if known is not None else self._made.get(key)
        if delivery is None:
            state = "waiting" if record.state not in TERMINAL else "pending" if recent else "unknown"
            return WebhookView(url=shown(record.webhook_url), state=state)
        waits = known is not None and delivery.state is DeliveryState.PENDING and not delivery.claim_s
        return WebhookView(
            url=shown(delivery.url),
            state=delivery.state,
            tries=delivery.tries,
            last_status=delivery.last_status or None,
            last_error=delivery.last_error or None,
            next_try_in_s=self.due_in_s(known) if known is not None and waits else None,
        )

    def due_in_s(self, known: Known) -> float:
        """Seconds until its next try."""
        return round(max(0.0, known.written + known.delivery.due_s - self._clock.monotonic()), 3)


def _nobody(key: str, known: Known | None) -> None:
    """Nobody wants to know yet."""


def _nobody_either(delivery: Delivery) -> None:
    """Nobody wants to know yet."""
