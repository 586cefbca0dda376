"""The agent's metrics, in a registry of their own so that a test may hold several agents."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.messages import WorkerLease, WorkerState

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class AgentMetrics:
    """What one agent counts.

    Attributes:
        attempts: attempts ended, by outcome (a failure by its reason).
        attempt_seconds: from acceptance to the outcome.
        step_seconds: per denoising step.
        refusals: assignments not accepted, by reply.
        launches, ends: lives of the group, and those that ended unasked, by reason.
        width, full_width: ranks it has, and should have.
        state: 1 for the state in the lease, 0 for the others.
        lease_failures: renewals that the bus did not confirm.
        attention: 1 for the attention kernel that the group has settled on.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.attempts = Counter("genfleet_attempts", "Attempts ended.", ["outcome"], registry=registry)
        self.attempt_seconds = Histogram(
            "genfleet_attempt_seconds", "From acceptance to outcome.", buckets=_SECONDS, registry=registry
        )
        self.step_seconds = Histogram(
            "genfleet_step_seconds", "Per denoising step.", ["model"], buckets=_SECONDS, registry=registry
        )
        self.refusals = Counter("genfleet_refusals", "Assignments not accepted.", ["reply"], registry=registry)
        self.launches = Gauge("genfleet_group_launches", "Launches of the group so far.", registry=registry)
        self.ends = Gauge(
            "genfleet_group_ends", "Ends of the group nobody asked for, so far.", ["reason"], registry=registry
        )
        self.width = Gauge("genfleet_group_width", "Ranks of the group.", registry=registry)
        self.full_width = Gauge("genfleet_group_full_width", "Ranks the group should have.", registry=registry)
        self.state = Gauge("genfleet_worker_state", "1 for the worker's state.", ["state"], registry=registry)
        self.lease_failures = Gauge(
            "genfleet_lease_failures", "Lease renewals not confirmed, so far.", registry=registry
        )
        self.attention = Gauge(
            "genfleet_group_attention", "1 for the attention kernel in use.", ["kernel"], registry=registry
        )

    def show_acceleration(self, told: str) -> None:
        """Set the kernel's gauge by what the group told: ``attention KERNEL …``."""
        self.attention.clear()
        word, _, rest = told.partition(" ")
        if word == "attention" and rest:
            self.attention.labels(rest.partition(" ")[0].rstrip(";")).set(1)

    def show(self, lease: WorkerLease, launches: int, ends: Mapping[str, int], lease_failures: int) -> None:
        """Set the gauges."""
        for word in WorkerState:
            self.state.labels(word.value).set(word is lease.state)
        self.width.set(lease.width)
        self.full_width.set(lease.full_width)
        self.launches.set(launches)
        for reason, count in ends.items():
            self.ends.labels(reason).set(count)
        self.lease_failures.set(lease_failures)
