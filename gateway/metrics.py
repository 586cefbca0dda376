"""What Prometheus sees of a gateway. Requests are counted by route template: never one series per job."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.live import Live
from gateway.problems import status_of
from shared.bus import Bus
from shared.messages import State
from shared.nats_bus.refusals import REFUSED

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One gateway's metrics in a registry of their own, so that several gateways fit into one test process."""

    def __init__(self, live: Live, bus: Bus) -> None:
        self.registry = CollectorRegistry()
        self._answers = Answers()
        self.registry.register(self._answers)
        self.registry.register(_Fleet(live, bus))
        self.registry.register(REFUSED)

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
            # Anybody can make up a method, and would make a series of it.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = str(scope.get("path_template") or "unknown")

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._answers.saw(method, route, message["status"], perf_counter() - start)
                await send(message)

            try:
                await app(scope, receive, watched)
            except Exception as error:
                # From something around the route, which lies further in than this: its answer is made further out.
                self._answers.saw(method, route, status_of(error), perf_counter() - start)
                raise

        return measured


class _Times:
    """Seconds to the first byte, of one route: how many answers lay between each bound and the one before."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0


class Answers(Collector):
    """Counts and times of answers. Plain numbers, put into the library's shape when they are asked for: its own take a
    lock each, ten times the cost. Everything here runs on one loop."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._times: dict[tuple[str, str], _Times] = {}

    def saw(self, method: str, route: str, status: int, seconds: float) -> None:
        """That answer began to go out so long after its request came."""
        self._counts[method, route, status] += 1
        times = self._times.get((method, route))
        if times is None:
            times = self._times[method, route] = _Times()
        times.counts[bisect_left(_BUCKETS, seconds)] += 1
        times.total += seconds

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "genfleet_gateway_requests", "Requests answered.", labels=("method", "route", "status")
        )
        for (method, route, status), count in self._counts.items():
            requests.add_metric((method, route, str(status)), count)
        yield requests
        seconds = HistogramMetricFamily(
            "genfleet_gateway_request_seconds", "Seconds to the first byte of the answer.", labels=("method", "route")
        )
        for labels, times in self._times.items():
            within, buckets = 0, []
            for bound, count in zip((*map(str, _BUCKETS), "+Inf"), times.counts, strict=True):
                within += count
                buckets.append((bound, float(within)))
            seconds.add_metric(labels, buckets, times.total)
        yield seconds


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
