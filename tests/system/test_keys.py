"""Keys as an operator meets them: a fleet that asks for them, the command line, the openai package, a browser."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AuthenticationError, OpenAI

from shared.settings import to_environ
from tests.support.fleet import ROOT, Fleet
from tests.support.nats_server import NatsServer

pytestmark = [
    pytest.mark.system,
    # What its own service announces says nothing of ours.
    pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of the dummy engine whose gateway asks for keys."""
    folder: Path = tmp_path_factory.mktemp("guarded") / "data"
    with Fleet(folder, "--model", "dummy", "--auth", "keys") as fleet:
        yield fleet


def genfleet(fleet: Fleet, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command line, with those settings."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
    environ["GENFLEET_URL"] = fleet.url
    environ |= {f"GENFLEET_{name.upper()}": value for name, value in settings.items()}
    whole = [sys.executable, "-m", "deploy.cli", *command]
    return subprocess.run(whole, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_a_whole_life_with_keys(guarded: Fleet, tmp_path: Path) -> None:
    admin_file = str(guarded.data_dir / "admin-key")
    assert admin_file in guarded.log()
    for name in ("secret", "admin-key"):
        assert stat.S_IMODE((guarded.data_dir / name).stat().st_mode) == 0o600

    refused = genfleet(guarded, "jobs")
    assert refused.returncode == 1
    assert "needs a key" in refused.stderr
    assert "GENFLEET_KEY_FILE" in refused.stderr

    made = genfleet(guarded, "keys", "create", "--tenant", "studio", "--name", "night shift", key_file=admin_file)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    key_file = tmp_path / "key"
    key_file.write_text(key)
    _, key_id, secret = key.split("_", 2)
    assert secret not in made.stderr

    submitted = genfleet(
        guarded, "submit", "--prompt", "a lighthouse", "--output", str(tmp_path / "made"), key_file=str(key_file)
    )
    assert submitted.returncode == 0, submitted.stderr
    assert (tmp_path / "made").stat().st_size > 0
    assert genfleet(guarded, "workers", key_file=str(key_file)).returncode == 0
    held = genfleet(guarded, "hold", key_file=str(key_file))
    assert held.returncode == 1
    assert "needs the role operator" in held.stderr

    listed = genfleet(guarded, "keys", "list", key_file=admin_file).stdout
    assert all(word in listed for word in (key_id, "active", "studio", "night shift"))
    assert secret not in listed

    with OpenAI(api_key=key, base_url=f"{guarded.url}/v1", max_retries=0) as client:
        assert len(client.videos.list().data) == 1
    browse(guarded, key)

    new = genfleet(guarded, "keys", "rotate", key_id, key=(guarded.data_dir / "admin-key").read_text())
    assert new.stdout.startswith(f"gf_{key_id}_")
    with OpenAI(api_key=key, base_url=f"{guarded.url}/v1", max_retries=0) as client, pytest.raises(AuthenticationError):
        client.videos.list()
    assert genfleet(guarded, "keys", "revoke", key_id, key_file=admin_file).returncode == 0
    assert genfleet(guarded, "jobs", key=new.stdout.strip()).returncode == 1

    written = genfleet(guarded, "audit", key_file=admin_file).stdout
    acts = [line.split("bootstrap")[1].split()[0] for line in written.splitlines()]
    assert acts == ["key.revoke", "key.rotate", "key.create"]
    for log in (guarded.data_dir / "logs").iterdir():
        assert secret not in log.read_text()


def browse(fleet: Fleet, key: str) -> None:
    """What a web page does with a key: a session, a job by it, its events, the end."""
    with httpx.Client(base_url=fleet.url, timeout=60) as browser:
        begun = browser.post("/v1/session", json={"key": key})
        assert begun.status_code == 201
        assert browser.post("/v1/jobs", json={"prompt": "a lighthouse"}).status_code == 403
        headers = {"X-CSRF-Token": begun.json()["csrf_token"]}
        job = browser.post("/v1/jobs", json={"prompt": "a lighthouse"}, headers=headers)
        assert job.status_code == 202
        with browser.stream("GET", f"/v1/jobs/{job.json()['id']}/events") as events:
            assert events.status_code == 200
            states = [json.loads(line[5:]).get("state") for line in events.iter_lines() if line.startswith("data:")]
        assert states[-1] == "succeeded"
        assert browser.delete("/v1/session", headers=headers).status_code == 204
        assert browser.get("/v1/session").status_code == 401


def test_it_comes_back_with_the_same_keys(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with Fleet(folder, "--model", "dummy", "--auth", "keys") as fleet:
        key = genfleet(fleet, "keys", "create", key_file=str(folder / "admin-key")).stdout.strip()
    with Fleet(folder, "--model", "dummy", "--auth", "keys") as fleet:
        assert genfleet(fleet, "jobs", key=key).returncode == 0
        assert genfleet(fleet, "jobs", key=key[:-1]).returncode == 1


def test_a_gateway_that_nobody_could_enter_does_not_start(nats_server: NatsServer, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
    environ |= to_environ(nats_server.settings())
    environ |= {
        "GENFLEET_AUTH": "keys",
        "GENFLEET_SECRET": "s" * 64,
        "GENFLEET_PORT": "0",
        "GENFLEET_ARTIFACTS": str(tmp_path / "artifacts"),
    }
    whole = [sys.executable, "-m", "gateway"]
    ended = subprocess.run(whole, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "GENFLEET_ADMIN_KEY_FILE" in ended.stderr
    assert "Traceback" not in ended.stderr
