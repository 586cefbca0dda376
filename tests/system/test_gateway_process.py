"""A gateway as a process, on a real broker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.leash import leashed
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.system

BOUND_S = 90.0
GRACE_S = 5.0


class Process:
    """``python -m gateway`` on a free port."""

    def __init__(self, server: NatsServer, folder: Path, **more: str) -> None:
        settings = server.settings()
        environ = {key: value for key, value in os.environ.items() if not key.startswith("GENFLEET_")}
        environ |= {
            "GENFLEET_NATS_URL": settings.nats_url,
            "GENFLEET_NATS_TOKEN": settings.nats_token,
            "GENFLEET_ARTIFACTS": str(folder / "artifacts"),
            "GENFLEET_PORT": "0",
            "GENFLEET_UNKNOWN_MODEL": "queue",
            "GENFLEET_DEFAULT_MODEL": "wan-demo",
            "GENFLEET_SHUTDOWN_GRACE_S": str(GRACE_S),
            **more,
        }
        self.process = subprocess.Popen(
            leashed(sys.executable, "-m", "gateway"), env=environ, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        ready = json.loads(self.process.stderr.readline())
        assert ready["event"] == "ready"
        self.url: str = ready["url"]
        self.client = httpx.Client(base_url=self.url, timeout=BOUND_S)
        self._rest = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._rest.start()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._rest.join(BOUND_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def until_ready(self) -> None:
        """Wait until /readyz says so."""
        bound = time.monotonic() + BOUND_S
        while self.client.get("/readyz").status_code != 200:
            assert time.monotonic() < bound, "not ready in time"

    def submit(self) -> str:
        """A new job's id; asks again while the answer is 503."""
        bound = time.monotonic() + BOUND_S
        while True:
            answer = self.client.post("/v1/jobs", json={"prompt": "a"}, headers={"Idempotency-Key": "k"})
            if answer.status_code == 202:
                return str(answer.json()["id"])
            assert answer.status_code == 503, answer.text
            assert time.monotonic() < bound, "no submit is taken"


@pytest.fixture
def gateway_process(nats_server: NatsServer, tmp_path: Path) -> Iterator[Process]:
    running = Process(nats_server, tmp_path)
    try:
        yield running
    finally:
        running.close()


def _states(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data:") and '"state"' in line:
            yield json.loads(line[5:])["state"]


def test_sigterm_with_open_streams_ends_in_good_order(gateway_process: Process) -> None:
    """Row 16 of the faults: streams end, the process exits 0 within its grace."""
    job = gateway_process.submit()
    with gateway_process.client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        lines = stream.iter_lines()
        assert next(_states(lines)) == "queued"
        gateway_process.process.send_signal(signal.SIGTERM)
        assert list(_states(lines)) == []
    assert gateway_process.process.wait(GRACE_S + BOUND_S) == 0


def test_streams_and_submits_survive_a_broker_that_is_killed(gateway_process: Process, nats_server: NatsServer) -> None:
    """Promise 8, rows 1 and 3: 503 while nats-server is dead; after its restart the open stream goes on."""
    job = gateway_process.submit()
    gateway_process.until_ready()
    with httpx.stream("GET", f"{gateway_process.url}/v1/jobs/{job}/events", timeout=BOUND_S) as stream:
        states = _states(stream.iter_lines())
        assert next(states) == "queued"
        nats_server.kill()
        answer = gateway_process.client.post("/v1/jobs", json={"prompt": "a"})
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert len(answer.json()["id"]) == 32
        assert gateway_process.client.get("/readyz").status_code == 503
        assert gateway_process.client.get("/healthz").status_code == 200
        assert gateway_process.client.get(f"/v1/jobs/{job}").json()["state"] == "queued"
        nats_server.start()
        gateway_process.until_ready()
        assert gateway_process.submit() == job, "the same key is still the same job"
        assert gateway_process.client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
        assert list(states) == ["cancelled"]


def test_impossible_ids_do_not_cost_the_connection(gateway_process: Process) -> None:
    """Rows 5 and 6 of the faults, through the real server's URL parsing."""
    gateway_process.until_ready()
    for path in ("a" * 5000, "%00", "%20", "*", "%3E", "..%2f..", "%2e%2e", "%ff"):
        answer = gateway_process.client.get(f"/v1/jobs/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert gateway_process.client.get("/readyz").status_code == 200
    assert gateway_process.submit()


def test_a_body_too_long_is_answered(gateway_process: Process) -> None:
    """Row 18 of the faults: 11 MB, over a real socket."""
    body = b'{"prompt":"' + b"x" * 11_000_000 + b'"}'
    answer = gateway_process.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


def test_connections_and_bodies_have_their_bounds(nats_server: NatsServer, tmp_path: Path) -> None:
    """Beyond the connections it is 503; a body that does not come is a 408, and its connection is closed."""
    running = Process(nats_server, tmp_path, GENFLEET_MAX_CONNECTIONS="3", GENFLEET_BODY_TIMEOUT_S="0.2")
    try:
        running.until_ready()
        host, _, port = running.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=BOUND_S) as slow:
            head = f"POST /v1/files HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
            said = b""
            while more := slow.recv(65536):
                said += more
        assert said.startswith(b"HTTP/1.1 408 ")
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=BOUND_S))
            refused = httpx.get(f"{running.url}/version", timeout=BOUND_S)
            assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
            assert refused.headers["retry-after"] == "2"
            assert httpx.get(f"{running.url}/healthz", timeout=BOUND_S).status_code == 200
    finally:
        running.close()
