"""The container files, as far as they can be checked without a container runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.nats_credentials import Credentials
from gateway.auth import keyless, secret_of
from shared.exposure import check_listening, loopback
from shared.settings import PREFIX, Settings, load
from workers import pool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.yaml.decode((ROOT / "compose.yaml").read_bytes())
    return decoded


def test_the_services_are_those_of_the_design(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"nats", "gateway", "scheduler", "worker"}
    assert compose["services"]["nats"]["image"].startswith("nats:2.10.")


SECRETS = "/run/secrets/"


def settings_of(service: dict[str, Any], folder: Path) -> tuple[Settings, set[str]]:
    """What its environment says, each secret a file of the name that the environment gives it; and those names."""
    environ = {key: str(value) for key, value in service.get("environment", {}).items() if key.startswith(PREFIX)}
    names = set()
    for key, value in environ.items():
        if value.startswith(SECRETS):
            assert key.endswith("_FILE"), "secrets are never in the environment itself"
            name = value.removeprefix(SECRETS)
            (folder / name).write_text(f"{name} {'x' * 40}")
            environ[key] = str(folder / name)
            names.add(name)
    return load(environ), names


def test_every_setting_exists_and_has_an_allowed_value(compose: dict[str, Any], tmp_path: Path) -> None:
    for name in ("gateway", "scheduler", "worker"):
        service = compose["services"][name]
        settings, secrets = settings_of(service, tmp_path)
        assert settings.nats_url == "tls://nats:4222"
        assert settings.artifacts == "/data/artifacts"
        assert secrets == set(service["secrets"]), name


def test_the_gateway_starts_and_asks_for_keys(compose: dict[str, Any], tmp_path: Path) -> None:
    """Row 26 of the faults: it listens on every address of its container."""
    settings, _ = settings_of(compose["services"]["gateway"], tmp_path)
    assert not loopback(settings.host)
    assert check_listening(settings) is False
    assert secret_of(settings).startswith("secret ")
    assert not keyless(settings)


def test_what_they_refer_to_is_there(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            assert mount.split(":")[0] in compose["volumes"]
        for secret in service["secrets"]:
            assert secret in compose["secrets"]
        if "build" in service:
            assert service["build"]["dockerfile"] == "deploy/docker/Dockerfile"
            assert f" AS {service['build']['target']}\n" in dockerfile
    assert pool.read(ROOT / compose["configs"]["pool"]["file"]).model == "wan-demo"


def test_each_has_a_health_check_and_comes_back(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


def test_only_the_host_itself_can_reach_the_gateway(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:8088:8088"]}


def test_the_dockerfile_copies_every_package_it_installs() -> None:
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    for package in ("gateway", "scheduler", "workers", "shared", "deploy"):
        assert dockerfile.count(f"COPY {package} {package}\n") == 2


def test_the_broker_encrypts_and_each_service_has_a_seed_of_its_own(compose: dict[str, Any], tmp_path: Path) -> None:
    """Rows 27; the command is the one in the file's first lines."""
    command = next(line for line in (ROOT / "compose.yaml").read_text().splitlines() if "nats credentials" in line)
    options = command.lstrip("# ").split()[3:]
    out, workers = options[options.index("--out") + 1], options[options.index("--workers") + 1]
    assert {"--tls", "--for-containers"} <= set(options)
    made = Credentials(tmp_path / out, 0o444)
    made.make(workers.split(","))
    made.make_tls(["nats"])
    seeds: dict[str, str] = {}
    for name in ("gateway", "scheduler", "worker"):
        service = compose["services"][name]
        (shown,) = [secret for secret in service["secrets"] if secret.startswith("nats_")]
        assert service["environment"]["GENFLEET_NATS_NKEY_FILE"] == f"/run/secrets/{shown}"
        seeds[name] = compose["secrets"][shown]["file"]
        assert service["environment"]["GENFLEET_NATS_CA"] in [mount["target"] for mount in service["configs"]]
    worker = compose["services"]["worker"]["environment"]["GENFLEET_WORKER"]
    assert seeds == {
        "gateway": f"{out}/gateway.nkey",
        "scheduler": f"{out}/scheduler.nkey",
        "worker": f"{out}/workers/{worker}.nkey",
    }
    made_by_hand = ("secrets/secret", "secrets/admin_key")
    for given in (*compose["secrets"].values(), *compose["configs"].values()):
        file = given["file"]
        assert (tmp_path / file).is_file() or (ROOT / file).is_file() or file in made_by_hand, file
