"""Who may do what on the bus, worked out from the topology: what it must be whatever buckets there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.permissions import SERVICES, border, rights
from shared.topology import (
    BUCKETS,
    BucketSpec,
    assign_subject,
    cancel_key,
    drain_key,
    model_key,
    nudge_subject,
    progress_key,
    reply_subject,
    result_key,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nats.md"
WORKER = "w1"


def matches(subject: str, allowed: str) -> bool:
    """NATS's rule: ``*`` is one token, ``>`` at the end one or more."""
    pattern = [".+" if token == ">" else "[^.]+" if token == "*" else re.escape(token) for token in allowed.split(".")]
    return re.fullmatch(r"\.".join(pattern), subject) is not None


def may(allowed: tuple[str, ...], subject: str) -> bool:
    return any(matches(subject, one) for one in allowed)


def test_a_worker_reaches_what_it_needs() -> None:
    crossing = border(WORKER)
    get = "$JS.API.DIRECT.GET.KV_"
    for subject in (
        "$KV.workers.w1",
        f"{get}workers.$KV.workers.w1",
        f"$KV.results.{result_key(WORKER, 'job1', 3)}",
        f"$KV.progress.{progress_key(WORKER, 'job1')}",
        f"$KV.models.{model_key(WORKER, 'wan2.1')}",
        f"{get}models.$KV.models.{model_key(WORKER, 'wan2.1')}",
        f"{get}orders.$KV.orders.{cancel_key(WORKER, 'i', 'job1', 3)}",
        f"{get}orders.$KV.orders.{drain_key(WORKER, 'i')}",
        f"{reply_subject(assign_subject(WORKER, 'i'), 'scheduler.x')}.7",
    ):
        assert may(crossing.sends, subject), subject
    assert may(crossing.hears, assign_subject(WORKER, "i"))
    assert may(crossing.hears, nudge_subject(WORKER, "i"))


@pytest.mark.parametrize("spec", BUCKETS, ids=lambda spec: str(spec.name))
def test_a_worker_reaches_nothing_else(spec: BucketSpec) -> None:
    crossing = border(WORKER)
    for key in ("job1", "w2", "w2.job1", "w2.job1.1", "w2.i.job1.1", "scheduler", "queue", "acme.job1", "w11", "x.w1"):
        assert not may(crossing.sends, f"$KV.{spec.name}.{key}"), key
        assert not may(crossing.sends, f"$JS.API.DIRECT.GET.KV_{spec.name}.$KV.{spec.name}.{key}"), key
    for verb in ("STREAM.INFO", "STREAM.MSG.GET", "STREAM.PURGE", "STREAM.DELETE", "DIRECT.GET", "CONSUMER.CREATE"):
        assert not may(crossing.sends, f"$JS.API.{verb}.KV_{spec.name}"), verb
    for subject in (assign_subject("w2", "i"), nudge_subject("w2", "i"), "_INBOX.scheduler.x.1", "worker.w2.reply.x.1"):
        assert not may((*crossing.sends, *crossing.hears), subject), subject


def test_every_worker_s_keys_name_it_and_others_have_none() -> None:
    for spec in BUCKETS:
        assert bool(spec.of_worker) == ("worker" in (*spec.owners, *spec.readers)), spec.name
        assert not spec.of_worker or spec.of_worker.split(".")[0] == "{worker}", spec.name


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("spec", BUCKETS, ids=lambda spec: str(spec.name))
def test_a_service_writes_what_it_owns_and_reads_what_it_follows(service: str, spec: BucketSpec) -> None:
    has = rights(service)
    writes = service in (*spec.owners, *spec.cleaners)
    assert may(has.publish, f"$KV.{spec.name}.a.b") is writes
    assert may(has.publish, f"$JS.API.STREAM.MSG.DELETE.KV_{spec.name}") is writes
    reads = writes or service in (*spec.readers, "admin")
    assert may(has.publish, f"$JS.API.DIRECT.GET.KV_{spec.name}.$KV.{spec.name}.a") is reads
    assert may(has.publish, f"$JS.API.CONSUMER.CREATE.KV_{spec.name}.follow-1") is reads
    for verb in ("PURGE", "DELETE", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN"):
        assert not may(has.publish, f"$JS.API.STREAM.{verb}.KV_{spec.name}"), verb


def test_only_a_job_s_gateways_and_schedulers_write_records() -> None:
    """Promise 5."""
    assert [service for service in SERVICES if may(rights(service).publish, "$KV.jobs.j")] == ["gateway", "scheduler"]


@pytest.mark.parametrize("service", SERVICES)
def test_nobody_hears_anothers_answers(service: str) -> None:
    hears = rights(service).subscribe
    for other in (*SERVICES, "worker"):
        assert may(hears, f"_INBOX.{other}.x.1") is (other == service)
        assert may(hears, f"worker.w1.reply.{other}.x.1") is (other == service)
    assert not may(hears, assign_subject(WORKER, "i"))
    assert not may(hears, "$KV.jobs.j")
    assert not may(hears, "$JS.API.STREAM.INFO.KV_jobs")


def table() -> str:
    """As ``docs/nats.md`` has it."""
    lines = ["| bucket | writes | reads | of it a worker has |", "|---|---|---|---|"]
    for spec in BUCKETS:
        writes = [*spec.owners, *(f"{cleaner} (removes)" for cleaner in spec.cleaners)]
        own = f"`{spec.of_worker.format(worker='<worker>')}`" if spec.of_worker else ""
        lines.append(f"| `{spec.name}` | {', '.join(writes)} | {', '.join((*spec.readers, 'admin'))} | {own} |")
    return "\n".join(lines)


def test_the_documentation_has_the_table() -> None:
    text = PAGE.read_text()
    shown = text.split("<!-- table -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    assert shown == table(), f"docs/nats.md: put there\n{table()}"
