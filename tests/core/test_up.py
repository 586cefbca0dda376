"""What ``genfleet up`` decides before it starts anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.plan import Places, PlanError, Programs, address, plan, pool_files, split_devices
from deploy.ports import PortInUse, check_free, free_port
from deploy.process import LONGEST_DELAY_S, ProcessSpec, delay_after
from shared.settings import Settings, load
from workers.pool import parse

PLACES = Places(data=Path("/data"), runtime=Path("/run/x"))
PROGRAMS = Programs(nats_server=Path("/bin/nats-server"), python=Path("/venv/bin/python"))


def planned(settings: Settings, environ: dict[str, str] | None = None) -> dict[str, ProcessSpec]:
    return {spec.name: spec for spec in plan(settings, PLACES, PROGRAMS, environ or {})}


SETTINGS = Settings(port=8088, nats_port=4222)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_fleet_is_a_broker_a_gateway_a_scheduler_and_workers() -> None:
    specs = planned(Settings(port=8088, nats_port=4222, workers=2))
    assert list(specs) == ["nats", "gateway", "scheduler", "worker-0", "worker-1"]
    assert specs["nats"].command == ("/bin/nats-server", "-c", "/data/nats.conf")
    assert specs["gateway"].command == ("/venv/bin/python", "-m", "gateway")
    assert specs["scheduler"].command == ("/venv/bin/python", "-m", "scheduler")
    assert specs["worker-1"].command == ("/venv/bin/python", "-m", "workers.agent")
    assert [str(spec.log) for spec in specs.values()] == [f"/data/logs/{name}.log" for name in specs]


def test_gateway_and_workers_stop_first_and_the_broker_last() -> None:
    specs = planned(SETTINGS)
    order = sorted(specs, key=lambda name: specs[name].stop_rank)
    assert set(order[:2]) == {"gateway", "worker-0"}
    assert order[2:] == ["scheduler", "nats"]
    assert all(0 < spec.stop_grace_s <= 30 for spec in specs.values())


def test_the_environment_of_a_service_gives_it_its_settings() -> None:
    environ = {"PATH": "/bin", "GENFLEET_LEASE_S": "2.5", "GENFLEET_CONFIG": "x.toml", "GENFLEET_NATS_TOKEN": "secret"}
    settings = Settings(port=9000, nats_port=4333, lease_s=2.5, nats_token="secret", log_file="x.log", workers=2)
    specs = planned(settings, environ)
    for name in ("gateway", "scheduler", "worker-0", "worker-1"):
        environment = dict(specs[name].env)
        assert "GENFLEET_NATS_NKEY_FILE" not in environment
        assert environment["PATH"] == "/bin"
        assert environment.pop("GENFLEET_NATS_TOKEN_FILE") == "/data/nats-token"
        loaded = load(without_files(environment))
        assert (loaded.nats_url, loaded.port, loaded.lease_s) == ("nats://127.0.0.1:4333", 9000, 2.5)
        assert (loaded.artifacts, loaded.runtime_dir, loaded.log_file) == ("/data/artifacts", "/run/x", "")
        assert loaded.drain_grace_s == 0
    first, second = load_worker(specs["worker-0"]), load_worker(specs["worker-1"])
    assert (first.worker, first.pool) == ("worker-0", "/data/pools/worker-0.toml")
    assert (second.worker, second.pool) == ("worker-1", "/data/pools/worker-1.toml")


def load_worker(spec: ProcessSpec) -> Settings:
    return load(without_files(spec.env))


def without_files(environ: dict[str, str]) -> dict[str, str]:
    """The settings that are no files' contents."""
    return {name: value for name, value in environ.items() if not name.endswith("_FILE")}


def test_no_secret_is_on_a_command_line_or_in_an_environment() -> None:
    named = ("nats_token", "nats_nkey", "nats_password", "secret", "admin_key", "key")
    settings = Settings(port=1, nats_port=2, auth="keys", **{name: f"the {name}" for name in named})  # type: ignore[arg-type]
    for spec in planned(settings).values():
        for name in named:
            assert f"the {name}" not in " ".join(spec.command)
            assert f"the {name}" not in spec.env.values()
            assert f"the {name}" not in repr(spec)


def test_each_service_shows_the_broker_a_seed_of_its_own() -> None:
    specs = planned(Settings(port=1, nats_port=2, workers=2))
    shown = {name: spec.env.get("GENFLEET_NATS_NKEY_FILE") for name, spec in specs.items()}
    assert shown == {
        "nats": None,
        "gateway": "/data/nats/gateway.nkey",
        "scheduler": "/data/nats/scheduler.nkey",
        "worker-0": "/data/nats/workers/worker-0.nkey",
        "worker-1": "/data/nats/workers/worker-1.nkey",
    }
    assert all("GENFLEET_NATS_TOKEN_FILE" not in spec.env for spec in specs.values())


def test_secrets_reach_those_who_need_them_and_no_worker() -> None:
    def files(specs: dict[str, ProcessSpec]) -> dict[str, set[str]]:
        named = ("GENFLEET_SECRET_FILE", "GENFLEET_ADMIN_KEY_FILE")
        return {name: {file for file in named if file in spec.env} for name, spec in specs.items()}

    secret, admin = {"GENFLEET_SECRET_FILE"}, {"GENFLEET_ADMIN_KEY_FILE"}
    none: set[str] = set()
    assert files(planned(Settings(port=1, nats_port=2, auth="keys"))) == {
        "nats": none,
        "gateway": secret | admin,
        "scheduler": secret,
        "worker-0": none,
    }
    assert files(planned(SETTINGS))["gateway"] == secret


def test_an_artifact_store_of_one_s_own_is_kept() -> None:
    specs = planned(Settings(port=1, nats_port=2, artifacts="s3://bucket/prefix"))
    assert load_worker(specs["worker-0"]).artifacts == "s3://bucket/prefix"


def test_workers_of_one_machine_get_metrics_ports_of_their_own() -> None:
    specs = planned(Settings(port=1, nats_port=2, workers=2, worker_metrics_port=9100))
    assert [load_worker(specs[name]).worker_metrics_port for name in ("worker-0", "worker-1")] == [9100, 9101]
    assert load_worker(planned(SETTINGS)["worker-0"]).worker_metrics_port == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", "127.0.0.1:80"), ("0.0.0.0", "127.0.0.1:80"), ("::", "[::1]:80"), ("fd00::1", "[fd00::1]:80")],
)
def test_the_address_is_one_that_this_machine_can_dial(host: str, expected: str) -> None:
    assert address(Settings(host=host, port=80)) == expected


# --- devices and pools -----------------------------------------------------------------------------------------------


def test_devices_are_split_among_workers() -> None:
    assert split_devices(Settings(workers=2, group_size=2, devices="4,5,0,1")) == ((4, 5), (0, 1))
    assert split_devices(Settings(workers=2, group_size=2)) == ((0, 1), (2, 3))
    assert split_devices(Settings()) == ((0,),)


@pytest.mark.parametrize("devices", ["0", "0,1,2", "0,0", "0,-1", "0,a", "0,", "0 1"])
def test_devices_that_do_not_fit_are_refused(devices: str) -> None:
    with pytest.raises(PlanError, match="--devices"):
        split_devices(Settings(workers=1, group_size=2, devices=devices))


def test_each_worker_has_a_pool_file_that_parses() -> None:
    settings = Settings(workers=2, group_size=2, device="cpu", model='/models/a "b" é', devices="3,2,1,0")
    texts = pool_files(settings, cores=8)
    pools = [parse(text) for text in texts.values()]
    assert list(texts) == ["worker-0", "worker-1"]
    assert [pool.name for pool in pools] == ["worker-0", "worker-1"]
    assert [pool.devices for pool in pools] == [(3, 2), (1, 0)]
    assert all((pool.width, pool.threads, pool.device) == (2, 2, "cpu") for pool in pools)
    assert all((pool.model, pool.serve_as) == ('/models/a "b" é', "a--b---") for pool in pools)
    assert parse(pool_files(Settings(), cores=2)["worker-0"]).serve_as is None


def test_a_job_that_names_no_model_means_the_one_that_is_served() -> None:
    def default(**options: str) -> str:
        return load_worker(planned(Settings(port=1, nats_port=2, **options))["gateway"]).default_model  # type: ignore[arg-type]

    assert default() == "wan-demo"
    assert default(model="/models/Wan2.1-T2V-14B-Diffusers") == "Wan2.1-T2V-14B-Diffusers"
    assert default(model="dummy", default_model="other") == "other"


def test_a_rank_has_a_thread_even_when_cores_are_few() -> None:
    assert parse(pool_files(Settings(group_size=8), cores=2)["worker-0"]).threads == 1


# --- ports -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_port_in_use_is_told(taken: int) -> None:
    with pytest.raises(PortInUse, match=f"port {taken} of 127.0.0.1: Address already in use"):
        check_free("127.0.0.1", taken)


def test_a_host_that_is_not_this_machine_s_is_told() -> None:
    with pytest.raises(PortInUse, match=r"192\.0\.2\.1"):
        check_free("192.0.2.1", 8088)
    with pytest.raises(PortInUse, match="cannot listen on"):
        check_free("host.invalid", 8088)


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port("127.0.0.1")
    check_free("127.0.0.1", port)
    assert 1024 < port < 65536


# --- starting again --------------------------------------------------------------------------------------------------


def test_delays_grow_to_a_bound() -> None:
    delays = [delay_after(count) for count in range(1, 40)]
    assert delays[:5] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY_S
