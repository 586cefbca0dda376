"""``genfleet up`` as an operator meets it: what it prints, what it refuses, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.fleet import ROOT, Fleet

pytestmark = pytest.mark.system


def up(*options: str) -> subprocess.CompletedProcess[str]:
    """One that is expected to give up by itself."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
    command = [sys.executable, "-m", "deploy.cli", "up", *options]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_a_second_one_on_the_same_folder_is_refused(dummies: Fleet) -> None:
    ended = up("--port", "0", "--data-dir", str(dummies.data_dir), "--model", "dummy")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "another `genfleet up`" in ended.stderr
    assert "--data-dir" in ended.stderr
    assert httpx.get(f"{dummies.url}/readyz", timeout=10).status_code == 200


def test_seeds_can_be_read_by_their_owner_only_and_each_process_knows_its_own(dummies: Fleet) -> None:
    """Row 27."""
    folder = dummies.data_dir / "nats"
    names = ["admin.nkey", "gateway.nkey", "scheduler.nkey", "workers/worker-0.nkey", "workers/worker-1.nkey"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nkey")) == names
    seeds = {name: (folder / name).read_text().strip() for name in names}
    assert len(set(seeds.values())) == 5
    for path in (dummies.data_dir / "nats.conf", folder / "accounts.conf", *(folder / name for name in names)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not any(seed in path.read_text() for seed in seeds.values()) or path.suffix == ".nkey"
    shown: list[str] = []
    for role in ("nats", "gateway", "scheduler", "agent", "rank0"):
        for pid in dummies.pids(role):
            environ = psutil.Process(pid).environ()
            assert not set(seeds.values()) & set(environ.values())
            assert not any(seed in " ".join(psutil.Process(pid).cmdline()) for seed in seeds.values())
            shown += [value for name, value in environ.items() if name == "GENFLEET_NATS_NKEY_FILE"]
    assert sorted(shown) == [str(folder / name) for name in names if name != "admin.nkey"]


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = up("--port", str(port), "--data-dir", str(tmp_path / "data"), "--model", "dummy")
    assert ended.returncode == 1
    assert f"port {port} of 127.0.0.1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_that_cannot_be_loaded_is_told_and_ends_it(tmp_path: Path) -> None:
    empty = tmp_path / "checkpoint"
    empty.mkdir()
    ended = up("--port", "0", "--data-dir", str(tmp_path / "data"), "--model", str(empty), "--device", "cpu")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert f"no worker can serve {empty}" in ended.stderr
    assert "model_index.json" in ended.stderr


def test_killed_it_leaves_no_process_and_its_folder_can_be_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with Fleet(folder, "--model", "dummy") as fleet:
        supervisor = psutil.Process(fleet.pids("nats")[0]).parent()
        assert supervisor is not None
        family = supervisor.children(recursive=True)
        assert len(family) >= 5  # nats-server, gateway (and its decoder), scheduler, agent, dummy engine
        supervisor.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    with Fleet(folder, "--model", "dummy") as fleet:
        assert httpx.get(f"{fleet.url}/readyz", timeout=10).status_code == 200
        assert fleet.stop() == 0
    assert "Traceback" not in fleet.log()


def test_a_folder_with_a_long_name_works_too(tmp_path: Path) -> None:
    """A Unix socket's path is limited to about 100 bytes; a data folder's is not."""
    folder = tmp_path / ("long" * 20) / ("name" * 20)
    folder.parent.mkdir()
    with Fleet(folder, "--model", "dummy") as fleet:
        assert [worker["state"] for worker in fleet.workers()] == ["idle"]
