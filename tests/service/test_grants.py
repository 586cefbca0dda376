"""What a worker without the artifact store's credentials may do: read its job's inputs and write its epoch's files, by
the URLs of its assignment, and nothing else. Row 27 of the faults, for files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from scheduler.grants import SLACK_S, Granting
from shared.artifacts import Artifacts, open_store
from shared.clock import SystemClock
from shared.errors import ArtifactError, ArtifactNotFound, ArtifactRefused, SettingsError
from shared.messages import FileGrants, Input
from shared.settings import Settings
from shared.stores import open_artifacts
from shared.topology import input_key
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker
from tests.support.s3_server import S3Server
from tests.support.scheduling import REQUEST
from workers.agent.granted import GrantedStore, JobFiles

JOB, OTHER = "a" * 32, "b" * 32
PHOTO = input_key("default", "0" * 64)
SECRET_PHOTO = input_key("acme", "1" * 64)
SETTINGS = Settings(secret="s" * 40, public_url="http://test", auth="keys", admin_key="a" * 40, max_output_bytes=1000)
ASKED = replace(REQUEST, image=Input(key=PHOTO, media_type="image/png", size=5, sha256="0" * 64))


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "store", SETTINGS) as running:
        await running.artifacts.put(PHOTO, b"photo")
        await running.artifacts.put(SECRET_PHOTO, b"another tenant's")
        yield running


@pytest.fixture
async def grants(gw: GatewayUnderTest) -> FileGrants:
    return await Granting(SETTINGS, gw.artifacts, gw.clock).of(JOB, 2, ASKED, 600.0)


@pytest.fixture
async def files(gw: GatewayUnderTest, grants: FileGrants) -> AsyncIterator[JobFiles]:
    asgi: Any = gw.app
    store = GrantedStore(httpx.AsyncClient(transport=httpx.ASGITransport(app=asgi)))
    yield store.of(grants)
    await store.close()


async def content(store: Artifacts, key: str) -> bytes:
    return b"".join([chunk async for chunk in store.read(key)])


async def keys(store: Artifacts) -> list[str]:
    return sorted([stored.key async for stored in store.list()])


# --- what is granted ----------------------------------------------------------------------------------------------


async def test_a_worker_reads_its_inputs_and_writes_its_files(
    gw: GatewayUnderTest, files: JobFiles, tmp_path: Path
) -> None:
    assert await files.fetch_file(PHOTO, tmp_path / "photo") == 5
    assert (tmp_path / "photo").read_bytes() == b"photo"
    made = tmp_path / "made"
    made.write_bytes(b"m" * 1000)
    stored = await files.take_file(f"{JOB}/2/0.mp4", made)
    assert (stored.key, stored.size) == (f"{JOB}/2/0.mp4", 1000)
    assert await content(gw.artifacts, f"{JOB}/2/0.mp4") == b"m" * 1000
    await files.take_file(f"{JOB}/2/0.mp4", made)  # tried once more, after an answer that was lost


def test_every_name_that_an_engine_gives_is_granted(grants: FileGrants) -> None:
    for name in ("0.mp4", "0.png", "0.bin", "0.thumbnail.jpg", "0.spritesheet.jpg"):
        assert name in grants.writes
    assert set(grants.reads) == {PHOTO}
    assert grants.seconds == 600.0 + SLACK_S


# --- what is not --------------------------------------------------------------------------------------------------


async def test_other_files_are_not_granted(files: JobFiles, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"m")
    with pytest.raises(ArtifactNotFound):
        await files.fetch_file(SECRET_PHOTO, tmp_path / "photo")
    with pytest.raises(ArtifactRefused):
        await files.take_file(f"{JOB}/2/other.mp4", made)
    assert not (tmp_path / "photo").exists()


async def test_no_grant_opens_anything_else(gw: GatewayUnderTest, grants: FileGrants) -> None:
    """Row 27 of the faults: not another job's files, another epoch's, another tenant's inputs, or another method."""
    client, before = gw.client, await keys(gw.artifacts)
    write, read = grants.writes["0.mp4"], grants.reads[PHOTO]
    tries = [
        ("PUT", write.replace(JOB, OTHER)),
        ("PUT", write.replace("/2/", "/3/")),
        ("PUT", write.replace("/2/", "/1/")),
        ("PUT", write.replace("0.mp4", "1.mp4")),
        ("PUT", write.replace("0.mp4", "0.png")),
        ("PUT", write.replace(f"{JOB}/2/0.mp4", PHOTO)),
        ("GET", write),
        ("PUT", read),
        ("GET", read.replace(PHOTO, SECRET_PHOTO)),
        ("GET", read.replace(PHOTO, f"{JOB}/2/0.mp4")),
        ("GET", read.split("?")[0]),
        ("PUT", write.split("?")[0]),
        ("PUT", write.replace("max_bytes=1000", "max_bytes=9000000")),
        ("PUT", write.replace("expires=", "expires=9")),
    ]
    for method, url in tries:
        answer = await client.request(method, url, content=b"x" if method == "PUT" else None)
        assert answer.status_code == 403, (method, url)
        assert answer.headers["content-type"] == "application/problem+json"
    for method in ("POST", "PATCH", "DELETE"):
        assert (await client.request(method, write)).status_code == 405
    assert await keys(gw.artifacts) == before


async def test_a_grant_is_no_key_of_the_api(gw: GatewayUnderTest, grants: FileGrants) -> None:
    query = grants.reads[PHOTO].split("?")[1]
    assert (await gw.client.get(f"/v1/jobs?{query}")).status_code == 401


async def test_a_grant_ends(gw: GatewayUnderTest, grants: FileGrants) -> None:
    gw.clock.jump_wall(grants.seconds - 1)
    assert (await gw.client.get(grants.reads[PHOTO])).status_code == 200
    gw.clock.jump_wall(2)
    for method, url in (("GET", grants.reads[PHOTO]), ("PUT", grants.writes["0.mp4"])):
        answer = await gw.client.request(method, url, content=b"x" if method == "PUT" else None)
        assert (answer.status_code, answer.json()["detail"]) == (403, "this grant has expired")


async def test_a_file_is_no_larger_than_was_granted(
    gw: GatewayUnderTest, grants: FileGrants, files: JobFiles, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"m" * 1001)
    with pytest.raises(ArtifactRefused, match="1000 are granted"):
        await files.take_file(f"{JOB}/2/0.mp4", made)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    for body in (b"m" * 1001, endless()):
        assert (await gw.client.put(grants.writes["0.mp4"], content=body)).status_code == 413
    assert f"{JOB}/2/0.mp4" not in await keys(gw.artifacts)


async def test_half_a_file_is_none(gw: GatewayUnderTest, grants: FileGrants) -> None:
    answer = await gw.client.put(grants.writes["0.mp4"], content=b"half", headers={"Content-Length": "8"})
    assert answer.status_code == 400
    assert f"{JOB}/2/0.mp4" not in await keys(gw.artifacts)


async def test_what_a_job_has_published_stays(gw: GatewayUnderTest, tmp_path: Path) -> None:
    """A worker whose lease was taken, or that thinks better of it, changes nothing that a client may have seen."""
    fleet = Fleet(gw.broker, gw.artifacts, gw.broker.clock)
    await fleet.announce()
    gw.client.headers["Authorization"] = f"Bearer {SETTINGS.admin_key}"
    record = await fleet.run((await gw.submit())["id"])
    granted = await Granting(SETTINGS, gw.artifacts, gw.clock).of(record.id, 1, REQUEST, 600.0)
    assert (await gw.client.put(granted.writes["0.mp4"], content=b"first")).status_code == 204
    await fleet.finish(record.id, b"published")
    answer = await gw.client.put(granted.writes["0.mp4"], content=b"later")
    assert answer.status_code == 409
    assert await content(gw.artifacts, f"{record.id}/1/0.mp4") == b"published"


async def test_another_deployments_grants_are_not_taken(gw: GatewayUnderTest) -> None:
    stranger = Granting(replace(SETTINGS, secret="t" * 40), gw.artifacts, gw.clock)
    granted = await stranger.of(JOB, 2, ASKED, 600.0)
    assert (await gw.client.get(granted.reads[PHOTO])).status_code == 403


async def test_a_scheduler_that_can_sign_nothing_says_what_is_missing(tmp_path: Path) -> None:
    folder = open_store(str(tmp_path))
    with pytest.raises(SettingsError, match="GENFLEET_SECRET"):
        await Granting(Settings(), folder, SystemClock()).of(JOB, 1, ASKED, 600.0)
    with pytest.raises(SettingsError, match="no artifact store"):
        await Granting(SETTINGS, None, SystemClock()).of(JOB, 1, ASKED, 600.0)


def test_who_signs_grants_needs_the_store_itself() -> None:
    with pytest.raises(ArtifactError, match="GENFLEET_ARTIFACTS=grants is for workers"):
        open_artifacts(Settings(artifacts="grants"))


# --- a bucket -----------------------------------------------------------------------------------------------------


async def test_a_bucket_grants_by_itself(s3: S3Server, tmp_path: Path) -> None:
    bucket = open_store(s3.location(), s3.options)
    await bucket.put(PHOTO, b"photo")
    await bucket.put(SECRET_PHOTO, b"another tenant's")
    granted = await Granting(Settings(), bucket, SystemClock()).of(JOB, 2, ASKED, 600.0)
    store = GrantedStore()
    try:
        files = store.of(granted)
        assert await files.fetch_file(PHOTO, tmp_path / "photo") == 5
        made = tmp_path / "made"
        made.write_bytes(b"m" * 300_000)
        await files.take_file(f"{JOB}/2/0.mp4", made)
        assert await content(bucket, f"{JOB}/2/0.mp4") == b"m" * 300_000
        (link,) = await bucket.sign("GET", [f"{JOB}/2/0.mp4"], 60)
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(link)
            assert answer.headers["content-type"] == "video/mp4"
            assert f'filename="{JOB}-0.mp4"' in answer.headers["content-disposition"]
            write, read = granted.writes["0.mp4"], granted.reads[PHOTO]
            for method, url in (
                ("PUT", write.replace(JOB, OTHER)),
                ("PUT", write.replace("/2/0.mp4", "/3/0.mp4")),
                ("PUT", read),
                ("GET", write),
                ("DELETE", write),
                ("GET", read.replace(PHOTO, SECRET_PHOTO)),
            ):
                assert (await client.request(method, url)).status_code == 403, (method, url)
            s3.ahead_s = granted.seconds + 1
            assert (await client.get(read)).status_code == 403
        with pytest.raises(ArtifactRefused):
            await files.fetch_file(PHOTO, tmp_path / "photo")
    finally:
        await store.close()
