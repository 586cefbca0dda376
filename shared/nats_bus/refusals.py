"""How often the broker refused something to this process, for the registries of the services' metrics."""

from prometheus_client import Counter

REFUSED = Counter(
    "genfleet_bus_refused", "What the broker's permissions did not allow to this process", ["what"], registry=None
)
