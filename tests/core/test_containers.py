"""The container files, as far as they can be checked without a container runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.settings import PREFIX, load
from workers import pool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.yaml.decode((ROOT / "compose.yaml").read_bytes())
    return decoded


def test_the_services_are_those_of_the_design(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"nats", "gateway", "scheduler", "worker"}
    assert compose["services"]["nats"]["image"].startswith("nats:2.10.")


def test_every_setting_exists_and_has_an_allowed_value(compose: dict[str, Any], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc")
    for name, service in compose["services"].items():
        environ = {key: str(value) for key, value in service.get("environment", {}).items() if key.startswith(PREFIX)}
        if name == "nats":
            assert environ == {}
            continue
        assert environ.pop(f"{PREFIX}NATS_TOKEN_FILE") == "/run/secrets/nats_token"
        settings = load({**environ, f"{PREFIX}NATS_TOKEN_FILE": str(token)})
        assert settings.nats_url == "nats://nats:4222"
        assert settings.artifacts == "/data/artifacts"
        assert service["secrets"] == ["nats_token"]


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
