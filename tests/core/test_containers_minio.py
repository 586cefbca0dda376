"""The container file that puts files into MinIO, as far as it can be checked without a container runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.grants import BY_GRANTS
from shared.stores import open_artifacts
from tests.core.test_containers import SECRETS, settings_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as both files together describe them."""
    base, over = (
        msgspec.yaml.decode((ROOT / name).read_bytes())["services"] for name in ("compose.yaml", "compose.minio.yaml")
    )
    merged = {**over, **base}
    for name in base:
        more = over.get(name, {})
        merged[name] = {
            **base[name],
            "environment": {**base[name].get("environment", {}), **more.get("environment", {})},
            "secrets": [*base[name].get("secrets", []), *more.get("secrets", [])],
        }
    return merged


def test_gateway_and_scheduler_keep_files_in_the_bucket(services: dict[str, Any], tmp_path: Path) -> None:
    for name in ("gateway", "scheduler"):
        settings, secrets = settings_of(services[name], tmp_path)
        assert settings.artifacts == "s3://genfleet/fleet"
        assert settings.s3_endpoint == "http://minio:9000"
        assert settings.s3_access_key.startswith("s3_access_key ")
        assert open_artifacts(settings).signs
        assert {"s3_access_key", "s3_secret_key"} <= secrets == set(services[name]["secrets"])


def test_clients_and_workers_are_sent_where_they_reach_it(services: dict[str, Any], tmp_path: Path) -> None:
    gateway, scheduler = (settings_of(services[name], tmp_path)[0] for name in ("gateway", "scheduler"))
    assert gateway.s3_public_endpoint == "http://127.0.0.1:9000"
    assert services["minio"]["ports"] == ["127.0.0.1:9000:9000"]
    assert scheduler.s3_public_endpoint == ""


def test_the_worker_has_no_credentials_of_the_store(services: dict[str, Any], tmp_path: Path) -> None:
    settings, secrets = settings_of(services["worker"], tmp_path)
    assert (settings.artifacts, settings.s3_access_key, settings.s3_endpoint) == (BY_GRANTS, "", "")
    assert not any(name.startswith("s3_") for name in secrets | set(services["worker"]["secrets"]))


def test_the_bucket_is_made_before_anybody_needs_it() -> None:
    file = msgspec.yaml.decode((ROOT / "compose.minio.yaml").read_bytes())
    services = file["services"]
    assert "mc mb --ignore-existing fleet/genfleet" in services["minio-bucket"]["command"][0]
    for name in ("gateway", "scheduler"):
        assert services[name]["depends_on"] == {"minio-bucket": {"condition": "service_completed_successfully"}}
    for name in ("minio", "minio-bucket"):
        assert ":RELEASE." in services[name]["image"]
        for secret in services[name]["secrets"]:
            assert file["secrets"][secret]["file"] == f"secrets/{secret}"
    for value in services["minio"]["environment"].values():
        assert not value.startswith("/") or value.startswith(SECRETS)
