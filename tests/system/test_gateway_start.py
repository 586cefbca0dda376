"""Where a gateway may listen, as a process. Row 26 of the faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.leash import leashed
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.system

BOUND_S = 90.0


def environment(**settings: str) -> dict[str, str]:
    ours = {f"GENFLEET_{name.upper()}": value for name, value in settings.items()}
    return {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")} | ours


@pytest.mark.parametrize(
    "command", [("-m", "gateway"), ("-m", "deploy.cli", "gateway"), ("-m", "deploy.cli", "up", "--data-dir", "data")]
)
def test_without_keys_it_does_not_listen_to_a_network(command: tuple[str, ...], tmp_path: Path) -> None:
    """Row 26: it refuses to start, says why and how, before it listens and before it looks for a broker."""
    root = str(Path(__file__).resolve().parents[2])
    environ = environment(host="0.0.0.0", port="0", nats_url="nats://127.0.0.1:1") | {"PYTHONPATH": root}
    ended = subprocess.run(
        [sys.executable, *command],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert ended.returncode != 0
    assert "0.0.0.0 can be reached from other machines" in ended.stderr
    for way_out in ("GENFLEET_HOST=127.0.0.1", "GENFLEET_AUTH=keys", "GENFLEET_AUTH=open"):
        assert way_out in ended.stderr
    assert "Traceback" not in ended.stderr
    assert '"event":"ready"' not in ended.stderr


def test_when_it_is_told_to_trust_everybody_it_starts_and_warns(nats_server: NatsServer, tmp_path: Path) -> None:
    """Row 26: unless it is told otherwise explicitly."""
    broker = nats_server.settings()
    environ = environment(
        host="0.0.0.0",
        port="0",
        auth="open",
        nats_url=broker.nats_url,
        nats_token=broker.nats_token,
        artifacts=str(tmp_path / "artifacts"),
    )
    with subprocess.Popen(
        leashed(sys.executable, "-m", "gateway"), env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            warning, ready = (json.loads(process.stderr.readline()) for _ in range(2))
            assert (warning["event"], warning["level"]) == ("open_to_everybody", "warning")
            assert ready["event"] == "ready"
            url = ready["url"].replace("0.0.0.0", "127.0.0.1")
            assert httpx.get(f"{url}/v1/queue", headers={"Host": "gpu-box:8088"}).status_code == 200
            assert httpx.get(f"{url}/v1/queue", headers={"Origin": "https://x.org"}).status_code == 403
        finally:
            process.kill()


def test_with_keys_it_starts_and_asks_for_them(nats_server: NatsServer, tmp_path: Path) -> None:
    """Rows 25 and 26."""
    broker = nats_server.settings()
    admin = tmp_path / "admin"
    admin.write_text("an-admin-key-of-at-least-32-characters\n")
    environ = environment(
        host="0.0.0.0",
        port="0",
        secret="s" * 40,
        admin_key_file=str(admin),
        nats_url=broker.nats_url,
        nats_token=broker.nats_token,
        artifacts=str(tmp_path / "artifacts"),
    )
    with subprocess.Popen(
        leashed(sys.executable, "-m", "gateway"), env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            ready = json.loads(process.stderr.readline())
            assert ready["event"] == "ready"
            with httpx.Client(base_url=ready["url"].replace("0.0.0.0", "127.0.0.1"), timeout=BOUND_S) as client:
                assert client.get("/v1/queue").status_code == 401
                key = {"Authorization": f"Bearer {admin.read_text().strip()}"}
                assert client.get("/v1/queue", headers=key).status_code == 200
                assert client.get("/healthz").status_code == 200
        finally:
            process.kill()
