"""The end of a job is told to the address that its client named (``shared.webhooks``). Gateways write down that it is
owed when they see the end; the leader makes sure of it before the job is archived, so none is lost because no gateway
was there. What a receiver does or does not do with it holds up no job."""

from __future__ import annotations

from scheduler.metrics import Metrics
from shared.bus import Bus
from shared.errors import BucketFull, InvalidKey, KeyExists, ValueTooLarge
from shared.messages import JobRecord, encode
from shared.telemetry import log
from shared.topology import DELIVERED, DELIVERIES, delivery_key
from shared.webhooks import delivery_of

_LOG = log(__name__)


class Owing:
    """Writes what is owed and was not written."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._deliveries = bus.bucket(DELIVERIES.name)
        self._delivered = bus.bucket(DELIVERED.name)
        self._metrics = metrics

    async def make_sure(self, record: JobRecord) -> None:
        """See to it that the job's end will be told, if it is to be.

        Raises:
            BusUnavailable: whether it will is not known; the job must not be archived yet.
        """
        delivery = delivery_of(record)
        if delivery is None:
            return
        key = delivery_key(record.tenant, record.id)
        if await self._deliveries.get(key) is not None or await self._delivered.get(key) is not None:
            return
        try:
            await self._deliveries.create(key, encode(delivery))
        except KeyExists:
            return
        except (BucketFull, InvalidKey, ValueTooLarge) as error:
            # Its owner can still ask for it. To keep the job out of the archive would fill the queue's bucket.
            _LOG.error("webhook_lost", job=record.id, error=repr(error))
            self._metrics.webhooks_lost.inc()
