"""What a gateway counts of its answers comes out in the shape that Prometheus expects."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Answers


def test_answers_are_counted_and_timed() -> None:
    registry, answers = CollectorRegistry(), Answers()
    registry.register(answers)
    for status, seconds in ((200, 0.001), (200, 0.0011), (404, 99.0)):
        answers.saw("GET", "/v1/jobs/{job_id}", status, seconds)
    page = generate_latest(registry).decode()
    samples = {
        (sample.name, sample.labels.get("status"), sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["genfleet_gateway_requests_total", "200", None] == 2
    assert samples["genfleet_gateway_requests_total", "404", None] == 1
    name = "genfleet_gateway_request_seconds"
    assert [samples[f"{name}_bucket", None, bound] for bound in ("0.001", "0.0025", "10.0", "+Inf")] == [1, 2, 2, 3]
    assert samples[f"{name}_count", None, None] == 3
    assert samples[f"{name}_sum", None, None] == 99.0021
