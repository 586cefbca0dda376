"""How a group is launched: its command line, its environment, its logs; and the worker's own name and folder."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import Settings
from workers.agent.__main__ import private_folder, serve_metrics, worker_name
from workers.agent.metrics import AgentMetrics
from workers.agent.process import KEPT_LOGS, MARK, command_line, environment, free_port, next_log
from workers.pool import Pool

LINK, POOL_FILE = Path("/run/link"), Path("/etc/pool.toml")


def test_a_group_is_torchruns_on_the_loopback_and_never_restarted_by_it() -> None:
    command = command_line(Pool(model="wan-demo", width=8), POOL_FILE, LINK, 4)
    assert command[1:7] == ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "4"]
    assert command[7:11] == ["--rdzv-backend", "static", "--master-addr", "127.0.0.1"]
    assert command[11] == "--master-port"
    assert command[13:15] == ["--max-restarts", "0"]
    assert command[15:] == ["-m", "workers.engine.rank", "--link", "/run/link", "--pool", "/etc/pool.toml"]


def test_the_dummy_is_one_process_without_torch() -> None:
    command = command_line(Pool(model="dummy", width=8), POOL_FILE, LINK, 8)
    assert command[1:] == ["-m", "workers.engine.dummy", "--link", "/run/link", "--pool", "/etc/pool.toml"]


@pytest.mark.parametrize("module", ["workers.engine.dummy", "workers.agent.__main__"])
def test_neither_the_dummy_nor_the_agent_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_port_is_outside_the_range_of_outgoing_connections() -> None:
    assert 20000 <= free_port() < 32000


def test_the_environment_of_a_group() -> None:
    base = {
        "PATH": "/bin",
        "GENFLEET_NATS_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "CUDA_VISIBLE_DEVICES": "4,5,6,7",
        "OMP_NUM_THREADS": "99",
    }
    pool = Pool(model="m", device="cuda", width=4, threads=3, env={"A": "b", "PATH": "/opt/bin"})
    made = environment(pool, 2, 2, "mark.1", base)
    assert "secret" not in made.values()
    assert (made["PATH"], made["A"]) == ("/opt/bin", "b")
    assert made["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert (made["OMP_NUM_THREADS"], made["WORLD_SIZE"], made[MARK]) == ("3", "2", "mark.1")


def test_threads_are_shared_out_among_the_ranks() -> None:
    made = environment(Pool(model="m", width=4096), 4096, 0, "mark.1", {})
    assert made["OMP_NUM_THREADS"] == "1"


def test_logs_are_kept_for_a_while_across_restarts(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for number in range(1, KEPT_LOGS + 5):
        descriptor = next_log(folder)
        os.write(descriptor, str(number).encode())
        os.close(descriptor)
    kept = sorted(folder.iterdir())
    assert [path.read_text() for path in kept] == [str(number) for number in range(4, KEPT_LOGS + 5)]
    assert stat.S_IMODE(kept[-1].stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("given", "pool", "host", "name"),
    [
        (Settings(worker="w7"), "demo", "host", "w7"),
        (Settings(), "demo", "Box_7.example.org", "demo-box-7-example-org"),
        (Settings(), "demo", "-.-", "demo"),
        (Settings(), "demo", "x" * 100, ("demo-" + "x" * 100)[:64]),
    ],
)
def test_the_workers_name(given: Settings, pool: str, host: str, name: str) -> None:
    assert worker_name(given, Pool(model="m", name=pool), host) == name


def test_the_private_folder_is_private_and_swept(tmp_path: Path) -> None:
    given = Settings(runtime_dir=str(tmp_path / "run"))
    folder = private_folder(given, "w1")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "group-abc").mkdir()
    (folder / "jobs" / "job-1").mkdir(parents=True)
    (folder / "logs").mkdir()
    assert private_folder(given, "w1") == folder
    assert [path.name for path in folder.iterdir()] == ["logs"]


def test_without_a_runtime_folder_it_is_below_the_data_folder(tmp_path: Path) -> None:
    given = Settings(data_dir=str(tmp_path / "data"))
    assert private_folder(given, "w1") == tmp_path / "data" / "run" / "w1"


def test_a_metrics_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match="GENFLEET_WORKER_METRICS_PORT"):
            serve_metrics(Settings(worker_metrics_port=taken.getsockname()[1]), AgentMetrics())
