"""Deliveries that somebody asks for once more: one job's, or all of a kind. The id stays; the tries begin anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import cast

from msgspec import Struct
from msgspec.structs import replace

from gateway.broker_clock import BrokerClock
from gateway.entries import decoded
from gateway.problems import Problem, bus_down
from gateway.webhooks.book import Book
from shared.bus import Batch, Bus
from shared.errors import BucketFull, BusUnavailable, KeyExists, WrongRevision
from shared.messages import Delivery, DeliveryState, JobRecord, encode
from shared.topology import DELIVERED, DELIVERED_MARK, DELIVERIES, delivery_key
from shared.webhooks import delivery_of, receiver_of

#: Of one request for many.
MOST = 1000
_TRIES = 5


class Which(Struct, frozen=True, kw_only=True):
    """Deliveries in that state; ``tenant``, ``receiver``, ``job``: empty means any; ``since_s``: that changed at most
    so many seconds ago."""

    state: DeliveryState
    tenant: str = ""
    receiver: str = ""
    job: str = ""
    since_s: float | None = None

    def means(self, delivery: Delivery) -> bool:
        """Whether it is one of them, but for its time."""
        return (
            delivery.state is self.state
            and self.tenant in ("", delivery.tenant)
            and self.job in ("", delivery.job)
            and (not self.receiver or receiver_of(delivery.url) == receiver_of(self.receiver))
        )


class Replays:
    """Asks for deliveries again.

    Args:
        tried_now: told of each, so that a receiver that was down is not waited for.
    """

    def __init__(self, bus: Bus, book: Book, broker_clock: BrokerClock, tried_now: Callable[[Delivery], None]) -> None:
        self._deliveries = bus.bucket(DELIVERIES.name)
        self._delivered = bus.bucket(DELIVERED.name)
        self._book = book
        self._broker_clock = broker_clock
        self._tried_now = tried_now
        self._reading = asyncio.Lock()

    async def one(self, record: JobRecord) -> None:
        """That job's delivery once more.

        Raises:
            Problem: 409 (there is none, or the job has not ended), or 503.
        """
        delivery = delivery_of(record)
        if delivery is None:
            raise Problem(409, "the job named no webhook_url, or has not ended", job=record.id)
        await self._again(delivery)

    async def many(self, which: Which) -> tuple[int, bool]:
        """Up to ``MOST`` of those once more: how many, and whether that was all.

        Raises:
            Problem: 503.
        """
        count = 0
        if which.state is DeliveryState.DELIVERED:
            async with self._reading, aclosing(self._made(which)) as found:
                async for delivery in found:
                    if delivery_key(delivery.tenant, delivery.job) in self._book.open:
                        continue  # asked for already
                    if count == MOST:
                        return count, False
                    await self._again(delivery)
                    count += 1
            return count, True
        keys = [key for key, _ in self._open(which)]
        for key in keys[:MOST]:
            known = self._book.open.get(key)
            if known is not None and which.means(known.delivery):
                await self._again(known.delivery)
                count += 1
        return count, len(keys) <= MOST

    def _open(self, which: Which) -> Iterator[tuple[str, Delivery]]:
        for key, known in list(self._book.open.items()):
            recent = which.since_s is None or self._book.unchanged_s(known) <= which.since_s
            if recent and which.means(known.delivery):
                yield key, known.delivery

    async def _made(self, which: Which) -> AsyncGenerator[Delivery, None]:
        """What ``delivered`` has of those: read for this request and not kept; one request at a time does so."""
        keys = delivery_key(which.tenant or "*", which.job or "*")
        # What is delivered from now on is not asked for: it may be what this very request brought about.
        mark = await self._delivered.put(DELIVERED_MARK, b"")
        batches = cast("AsyncGenerator[Batch, None]", self._delivered.follow(keys))
        async with aclosing(batches):
            async for batch in batches:
                for entry in batch.entries:
                    delivery = decoded(entry, Delivery) if entry.revision < mark else None
                    recent = which.since_s is None or self._broker_clock.since(entry.timestamp) <= which.since_s
                    if delivery is not None and recent and which.means(delivery):
                        yield delivery
                if batch.caught_up:
                    return

    async def _again(self, asked: Delivery) -> None:
        key = delivery_key(asked.tenant, asked.job)
        try:
            for _ in range(_TRIES):
                if await self._once(key, asked):
                    return
        except BusUnavailable:
            raise bus_down(asked.job) from None
        except BucketFull:
            raise Problem(503, "too many webhooks wait for their receivers", job=asked.job) from None
        raise Problem(503, "the webhook is being changed by others; try again", job=asked.job, retry_after_s=1)

    async def _once(self, key: str, asked: Delivery) -> bool:
        """Whether it is queued, or being tried."""
        entry = await self._deliveries.get(key)
        found = None if entry is None else decoded(entry, Delivery)
        if entry is not None and found is not None:
            if found.claim_s:
                return True  # under way
            fresh = found.state is DeliveryState.PENDING
            wanted = _anew(found, found.round if fresh else found.round + 1)
            try:
                revision = await self._deliveries.update(key, encode(wanted), entry.revision)
            except WrongRevision:
                return False
        else:
            made = await self._book.was_made(key)
            wanted = _anew(asked, 0 if made is None else made.round + 1)
            try:
                revision = await self._deliveries.create(key, encode(wanted))
            except KeyExists:
                return False
        self._tried_now(wanted)
        self._book.put(key, wanted, revision)
        return True


def _anew(delivery: Delivery, number: int) -> Delivery:
    return replace(
        delivery,
        state=DeliveryState.PENDING,
        round=number,
        tries=0,
        last_status=0,
        last_error="",
        age_s=0.0,
        due_s=0.0,
        by="",
        claim_s=0.0,
    )
