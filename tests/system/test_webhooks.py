"""Webhooks of real gateways on a real broker, told to a real receiver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from tests.support.fleet import until
from tests.support.leash import leashed
from tests.support.nats_server import NatsServer
from tests.support.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.system

BOUND_S = 90.0


@contextmanager
def gateway(
    server: NatsServer, folder: Path, timeout_s: float = 30.0
) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """``python -m gateway`` on a free port, and a client for it."""
    settings = server.settings()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GENFLEET_")}
    environ |= {
        "GENFLEET_NATS_URL": settings.nats_url,
        "GENFLEET_NATS_TOKEN": settings.nats_token,
        "GENFLEET_ARTIFACTS": str(folder / "artifacts"),
        "GENFLEET_PORT": "0",
        "GENFLEET_UNKNOWN_MODEL": "queue",
        "GENFLEET_DEFAULT_MODEL": "wan-demo",
        "GENFLEET_SECRET": "0123456789abcdef" * 3,
        "GENFLEET_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "GENFLEET_WEBHOOK_TIMEOUT_S": str(timeout_s),
    }
    process = subprocess.Popen(leashed(sys.executable, "-m", "gateway"), env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read, daemon=True)
    try:
        ready = json.loads(process.stderr.readline())
        assert ready["event"] == "ready"
        rest.start()
        with httpx.Client(base_url=ready["url"], timeout=BOUND_S) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()
        rest.join(BOUND_S)
        process.stderr.close()


def ended(client: httpx.Client, url: str) -> str:
    """A job that has just ended, as nobody had taken it."""
    made = client.post("/v1/jobs", json={"prompt": "a", "webhook_url": url})
    assert made.status_code == 202, made.text
    job = str(made.json()["id"])
    assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    return job


def state(client: httpx.Client, job: str) -> str:
    return str(client.get(f"/v1/jobs/{job}").json()["webhook"]["state"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def test_every_end_is_told_once_by_two_gateways_and_verifies(
    nats_server: NatsServer, tmp_path: Path, receiver: Receiver
) -> None:
    with gateway(nats_server, tmp_path) as (one, _), gateway(nats_server, tmp_path) as (two, _):
        jobs = [ended(client, f"{receiver.url}/ok") for client in (one, two) for _ in range(10)]
        until("all are told", lambda: all(state(two, job) == state(one, job) == "delivered" for job in jobs))
        assert Counter(got.ident for got in receiver.got) == Counter(f"msg_{job}" for job in jobs)
        secret = one.get("/v1/webhooks/secret").json()["secret"]
        for got in receiver.got:
            said = Webhook(secret).verify(got.body, got.headers)
            assert (said["type"], f"msg_{said['data']['id']}") == ("job.cancelled", got.ident)
        assert one.get("/v1/webhooks/deliveries").json() == {"data": [], "next": None}
        again = two.post(f"/v1/jobs/{jobs[0]}/webhook/replay")
        assert again.status_code == 202
        until("it is told once more", lambda: [got.ident for got in receiver.got].count(f"msg_{jobs[0]}") == 2)


def test_a_gateway_killed_before_it_has_told_is_replaced_by_the_next(
    nats_server: NatsServer, tmp_path: Path, receiver: Receiver
) -> None:
    """Rows 9 and 23 of the faults: `kill -9` while one receiver hangs and another answers 503."""
    with gateway(nats_server, tmp_path, timeout_s=2.0) as (client, process):
        hanging = ended(client, f"{receiver.url}/hang")
        until("the first try has begun", lambda: receiver.of("/hang"))
        busy = ended(client, f"{receiver.url}/busy")
        until("the other was refused", lambda: receiver.of("/busy"))
        process.kill()
        process.wait()
    receiver.released.set()
    receiver.cured.set()
    with gateway(nats_server, tmp_path) as (client, _):
        until("both are told", lambda: state(client, hanging) == state(client, busy) == "delivered", BOUND_S)
        assert {got.ident for got in receiver.of("/hang")} == {f"msg_{hanging}"}
        assert {got.ident for got in receiver.of("/busy")} == {f"msg_{busy}"}
        assert len(receiver.of("/hang")) >= 2
        nats_server.kill()
        nats_server.start()
        until("the gateway is back", lambda: client.get("/readyz").status_code == 200, BOUND_S)
        later = ended(client, f"{receiver.url}/later")
        until("it tells on", lambda: receiver.of("/later"), BOUND_S)
        assert [got.ident for got in receiver.of("/later")] == [f"msg_{later}"]
