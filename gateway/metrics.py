"""What Prometheus sees of a gateway. Requests are counted by route template: never one series per job."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.live import Live
from shared.bus import Bus
from shared.messages import State

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One gateway's metrics in a registry of their own, so that several gateways fit into one test process."""

    def __init__(self, live: Live, bus: Bus) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "genfleet_gateway_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "genfleet_gateway_request_seconds",
            "Seconds to the first byte of the answer.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str, int], tuple[Histogram, Counter]] = {}
        self.registry.register(_Fleet(live, bus))

    def _of(self, method: str, route: str, status: int) -> tuple[Histogram, Counter]:
        """The two series of such an answer; looked up by their labels once, which costs more than to count."""
        found = self._series.get((method, route, status))
        if found is None:
            found = self._seconds.labels(method, route), self._requests.labels(method, route, str(status))
            self._series[method, route, status] = found
        return found

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Counts and times what goes through."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP:
                await app(scope, receive, send)
                return
            start = perf_counter()
            method = str(scope["method"])
            route = str(scope.get("path_template") or "unknown")

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seconds, requests = self._of(method, route, message["status"])
                    seconds.observe(perf_counter() - start)
                    requests.inc()
                await send(message)

            await app(scope, receive, watched)

        return measured


class _Fleet(Collector):
    """Read when asked for, from what the gateway knows anyway."""

    def __init__(self, live: Live, bus: Bus) -> None:
        self._live = live
        self._bus = bus

    def collect(self) -> Iterable[Metric]:
        live = self._live
        jobs = GaugeMetricFamily("genfleet_jobs", "Jobs that the bucket holds, by state.", labels=["state"])
        for state in State:
            jobs.add_metric([str(state)], live.index.states[state])
        yield jobs
        queue = GaugeMetricFamily("genfleet_queue_length", "Queued jobs, by priority.", labels=["priority"])
        for priority in range(10):
            queue.add_metric([str(priority)], live.queue.priorities[priority])
        yield queue
        retained = len(live.retained.index)
        yield GaugeMetricFamily("genfleet_retained_jobs", "Ended jobs in the archive, as listed here.", value=retained)
        workers = GaugeMetricFamily("genfleet_workers", "Workers, by state.", labels=["state"])
        states = [state for _, state, _ in live.fleet.workers()]
        for word in sorted(set(states)):
            workers.add_metric([word], states.count(word))
        yield workers
        yield GaugeMetricFamily("genfleet_gateway_streams", "Open event streams.", value=live.streams.clients)
        yield GaugeMetricFamily(
            "genfleet_gateway_bus_contact_seconds", "Unbroken contact with the bus.", value=self._bus.contact_s()
        )
