"""What Prometheus sees of webhooks."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.webhooks.book import Book
from shared.messages import DeliveryState


class WebhookMetrics:
    """Counts tries by what came of them: ``delivered``, ``failed`` (to be tried again), ``given_up``."""

    def __init__(self, registry: CollectorRegistry, book: Book) -> None:
        self._tries = Counter(
            "genfleet_gateway_webhooks", "Tries to deliver a webhook, by outcome.", ("outcome",), registry=registry
        )
        self.delivered = self._tries.labels("delivered")
        self.failed = self._tries.labels("failed")
        self.given_up = self._tries.labels("given_up")
        registry.register(_Open(book))


class _Open(Collector):
    def __init__(self, book: Book) -> None:
        self._book = book

    def collect(self) -> Iterable[Metric]:
        ages = {DeliveryState.PENDING: [0.0], DeliveryState.GIVEN_UP: [0.0]}
        for known in self._book.open.values():
            ages[known.delivery.state].append(self._book.age_s(known))
        waiting = GaugeMetricFamily("genfleet_webhooks", "Webhooks not delivered, by state.", labels=["state"])
        for state, found in ages.items():
            waiting.add_metric([state], len(found) - 1)
        yield waiting
        yield GaugeMetricFamily(
            "genfleet_webhooks_oldest_seconds", "Age of the oldest pending one.", value=max(ages[DeliveryState.PENDING])
        )
