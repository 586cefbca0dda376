"""Whole jobs by real processes over each kind of store: a bucket, and a worker that has no way to the store at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared.settings import Settings
from tests.support.fleet import until
from tests.support.gateway import png
from tests.support.nats_server import NatsServer
from tests.support.s3_server import S3Server
from tests.support.service_process import ServiceProcess

pytestmark = pytest.mark.system

SECRET = "0123456789abcdef" * 4
WANTED = {"prompt": "a fade", "task": "image-to-video", "size": "64x64", "num_frames": "17", "steps": "2"}


def bucket(s3: S3Server) -> Settings:
    options = s3.options
    return Settings(
        artifacts=s3.location(),
        s3_endpoint=options.endpoint,
        s3_region=options.region,
        s3_access_key=options.access_key,
        s3_secret_key=options.secret_key,
        s3_allow_http=True,
    )


@contextmanager
def fleet(folder: Path, store: Settings, worker: Settings) -> Iterator[httpx.Client]:
    """A broker, a gateway, a scheduler and one dummy worker; a client of the gateway."""
    pool = folder / "pool.toml"
    pool.write_text('name = "small"\nmodel = "dummy"\n')
    with ExitStack() as stack:
        nats = stack.enter_context(NatsServer(folder / "nats")).settings()

        def on(settings: Settings) -> Settings:
            return replace(settings, nats_url=nats.nats_url, nats_token=nats.nats_token, data_dir=str(folder / "data"))

        def start(module: str, settings: Settings) -> ServiceProcess:
            return stack.enter_context(ServiceProcess(module, on(settings), folder / f"{module}.log"))

        gateway = start("gateway", replace(store, port=0, secret=SECRET))
        gateway.wait_for("ready")
        ready = gateway.event("ready")
        assert ready is not None
        url = str(ready["url"])
        start("scheduler", replace(store, secret=SECRET, files_url=url)).wait_for("ready")
        small = replace(worker, pool=str(pool), worker="small", runtime_dir=str(folder / "run"))
        start("workers.agent", small).wait_for("ready")
        yield stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))


def ended(client: httpx.Client, job: str) -> dict[str, object]:
    def probe() -> dict[str, object] | None:
        view = client.get(f"/v1/jobs/{job}").json()
        return dict(view) if view["state"] in ("succeeded", "failed", "cancelled") else None

    return until(f"job {job} ends", probe, 120.0)


def one_job(client: httpx.Client) -> tuple[str, dict[str, object]]:
    """A job with an uploaded picture that leaves a file and pictures of it; its id and its output's view."""
    fields = {**WANTED, "dummy": json.dumps({"output_bytes": 300_000, "pictures": 1})}
    answer = client.post("/v1/jobs", data=fields, files={"image": png(64, 64)})
    assert answer.status_code == 202, answer.text
    job = str(answer.json()["id"])
    view = ended(client, job)
    assert view["state"] == "succeeded", view
    outputs = view["outputs"]
    assert isinstance(outputs, list)
    return job, outputs[0]


def check_files(client: httpx.Client, job: str, output: dict[str, object]) -> None:
    """Everything that the job made can be had, by key and by link, and nothing of it once the job is deleted."""
    assert len(client.get(str(output["url"])).content) == output["size"] == 300_000
    sheet = output["spritesheet"]
    assert isinstance(sheet, dict)
    for url in (output["thumbnail_url"], sheet["url"]):
        assert client.get(str(url)).content.startswith(b"\xff\xd8\xff")
    links = [
        str(client.post(f"/v1/jobs/{job}/outputs/0/link", json={"variant": variant}).json()["url"])
        for variant in ("output", "thumbnail", "spritesheet")
    ]
    for link in links:
        assert httpx.get(link, trust_env=False).status_code == 200
    assert client.delete(f"/v1/jobs/{job}").status_code == 204
    for link in links:
        assert httpx.get(link, trust_env=False).status_code in (404, 410)


def test_a_fleet_over_a_bucket(tmp_path: Path, s3: S3Server) -> None:
    store = bucket(s3)
    with fleet(tmp_path, store, store) as client:
        check_files(client, *one_job(client))
        left = s3.ask("GET", f"/{store.artifacts.split('/')[2]}?list-type=2").text
        assert left.count("<Key>") == 1  # the picture that was uploaded: the sweep's, a day later
        assert "/inputs/default/" in left


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_worker_that_has_no_way_to_the_store(tmp_path: Path, s3: S3Server, kind: str) -> None:
    """It knows neither the folder nor the bucket nor their credentials; files go by what its assignments grant."""
    hidden = tmp_path / "hidden"
    store = bucket(s3) if kind == "bucket" else Settings(artifacts=str(hidden))
    with fleet(tmp_path, store, Settings(artifacts="grants")) as client:
        job, output = one_job(client)
        if kind == "bucket":
            put = sorted(path.rpartition("/")[2] for method, path in s3.presigned if method == "PUT")
            assert put == ["0.bin", "0.spritesheet.jpg", "0.thumbnail.jpg"]
        else:
            assert len(list((hidden / job / "1").iterdir())) == 3
        check_files(client, job, output)
        assert not (hidden / job).exists()
