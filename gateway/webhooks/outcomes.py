"""What came of tries, written down: made, to be tried again, or given up."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.webhooks.book import Book, Known
from gateway.webhooks.lanes import Lanes
from gateway.webhooks.metrics import WebhookMetrics
from gateway.webhooks.schedule import Failed, Told, Verdict, due_after
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable, WrongRevision
from shared.messages import Delivery, DeliveryState, encode
from shared.telemetry import log
from shared.topology import DELIVERED, DELIVERIES

_LOG = log(__name__)

#: After a write that was not answered.
AGAIN_S = 1.0
_LONGEST_ERROR = 200


class Outcomes:
    """Writes them, and tells the lanes.

    Args:
        chance: random numbers, 0 to 1.
        again: queues a delivery as it is known.
    """

    def __init__(
        self,
        bus: Bus,
        book: Book,
        lanes: Lanes,
        clock: Clock,
        metrics: WebhookMetrics,
        retry_s: float,
        chance: Callable[[], float],
        again: Callable[[str], None],
    ) -> None:
        self._deliveries = bus.bucket(DELIVERIES.name)
        self._delivered = bus.bucket(DELIVERED.name)
        self._book = book
        self._lanes = lanes
        self._clock = clock
        self._metrics = metrics
        self._retry_s = retry_s
        self._chance = chance
        self._again = again

    async def settle(self, key: str, claimed: Known, verdict: Verdict) -> None:
        """The try of a claimed delivery came to this. Its place is free at once; the rest takes as long as the bus
        takes."""
        tried = replace(
            claimed.delivery,
            tries=claimed.delivery.tries + 1,
            last_status=verdict.status,
            last_error="" if isinstance(verdict, Told) else verdict.error[:_LONGEST_ERROR],
            age_s=self._book.age_s(claimed),
            claim_s=0.0,
        )
        _LOG.info("webhook_tried", job=tried.job, id=tried.id, tries=tried.tries, status=tried.last_status)
        match verdict:
            case Told():
                self._metrics.delivered.inc()
                self._lanes.told(key)
                await self._made(key, replace(tried, state=DeliveryState.DELIVERED), claimed.revision)
            case Failed():
                await self._failed(key, claimed.revision, tried, verdict)

    async def _made(self, key: str, made: Delivery, revision: int) -> None:
        self._book.settle(key, made)
        remembered = False
        while True:
            try:
                if not remembered:
                    await self._delivered.put(key, encode(made))
                remembered = True
                await self._deliveries.purge(key, revision)
                return
            except BusUnavailable:
                await self._clock.sleep(AGAIN_S)
            except BucketFull:
                _LOG.warning("no room to remember what was delivered", key=key)
                remembered = True

    async def _failed(self, key: str, revision: int, tried: Delivery, verdict: Failed) -> None:
        wait = None
        if not verdict.final:
            wait = due_after(tried.tries, tried.age_s, self._retry_s, self._chance(), verdict.retry_after_s)
        expired: list[str] = []
        if verdict.down:
            expired = self._lanes.failed(key, self._clock.monotonic(), verdict.retry_after_s)
        else:
            self._lanes.left(key)
        if wait is None:
            await self._give_up(key, tried, revision)
        else:
            self._metrics.failed.inc()
            await self._write(key, replace(tried, due_s=wait), revision)
        for waited in expired:
            known = self._book.open.get(waited)
            if known is not None:
                said = f"its receiver is down: {verdict.error}"[:_LONGEST_ERROR]
                late = replace(known.delivery, last_error=said, age_s=self._book.age_s(known))
                await self._give_up(waited, late, known.revision)

    async def _give_up(self, key: str, delivery: Delivery, revision: int) -> None:
        self._metrics.given_up.inc()
        await self._write(key, replace(delivery, state=DeliveryState.GIVEN_UP, due_s=0.0, claim_s=0.0), revision)

    async def _write(self, key: str, delivery: Delivery, revision: int) -> None:
        while True:
            try:
                self._book.put(key, delivery, await self._deliveries.update(key, encode(delivery), revision))
                return
            except BusUnavailable:
                await self._clock.sleep(AGAIN_S)
            except BucketFull:
                # It was tried all the same: until there is room, only this process knows when to try again.
                _LOG.warning("no_room_for_what_came_of_a_try", key=key)
                self._book.keep_in_mind(key, delivery, revision)
                return
            except WrongRevision:
                # The write before happened and its answer was lost, or the try took longer than the claim.
                await self.reread(key)
                return

    async def reread(self, key: str) -> None:
        """Somebody else wrote the delivery.

        Raises:
            BusUnavailable: what, is not known.
        """
        entry = await self._deliveries.get(key)
        if entry is None:
            self._book.forget(key)
            return
        self._book.take(entry)
        self._again(key)
