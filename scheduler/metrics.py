"""What Prometheus is told about the scheduler."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from scheduler.state import CoreState
from shared.nats_bus.refusals import REFUSED

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The scheduler's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(REFUSED)
        self.jobs = Gauge("genfleet_scheduler_jobs", "Open jobs by state", ["state"], registry=self.registry)
        self.workers = Gauge(
            "genfleet_scheduler_workers", "Workers by what they say", ["state"], registry=self.registry
        )
        self.moves = Counter("genfleet_scheduler_moves", "Records moved, by kind", ["move"], registry=self.registry)
        self.lost = Counter("genfleet_scheduler_cas_lost", "Writes that somebody else won", registry=self.registry)
        self.contact = Gauge("genfleet_scheduler_contact_seconds", "Unbroken broker contact", registry=self.registry)
        self.leading = Gauge("genfleet_scheduler_leading", "1 while this process leads", registry=self.registry)
        self.takeovers = Counter(
            "genfleet_scheduler_takeovers", "Times that this process began to lead", registry=self.registry
        )
        self.archived = Counter("genfleet_scheduler_archived", "Records moved to the archive", registry=self.registry)
        self.unarchived = Gauge(
            "genfleet_scheduler_unarchived", "Ended jobs that are not in the archive yet", registry=self.registry
        )
        self.expired = Counter(
            "genfleet_scheduler_expired", "Archived jobs that retention removed", registry=self.registry
        )
        self.webhooks_lost = Counter(
            "genfleet_scheduler_webhooks_lost", "Webhooks that found no room to wait", registry=self.registry
        )
        self.swept = Counter("genfleet_scheduler_swept", "Files that nothing referred to", registry=self.registry)
        self.leftovers = Counter(
            "genfleet_scheduler_leftovers", "Files of attempts that came too late, removed", registry=self.registry
        )
        self.assign = Histogram(
            "genfleet_scheduler_assign_seconds",
            "From the decision to assign a job to the worker's acceptance",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def show(self, state: CoreState) -> None:
        """Bring the gauges up to date."""
        for word, count in state.counts.items():
            self.jobs.labels(word).set(count)
        self.contact.set(state.contact_s)
        self.workers.clear()
        for worker in state.workers.values():
            self.workers.labels("gone" if worker.gone else worker.state).inc()

    def serve(self, host: str, port: int) -> None:
        """Answer ``/metrics`` there, in a thread of its own, until the process ends."""
        start_http_server(port, host, self.registry)
