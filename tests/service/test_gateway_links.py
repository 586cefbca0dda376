"""URLs of files that need no key: for how long, for what, and what ends them; small pictures; and the store's own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from msgspec.structs import replace

from gateway.links import Links
from shared import lifecycle
from shared.lifecycle import Stamp
from shared.messages import JobRecord, Output, Succeeded
from shared.pictures import Variant
from shared.settings import Settings
from shared.stores import open_artifacts
from shared.topology import output_key
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker
from tests.support.s3_server import S3Server

SETTINGS = Settings(public_url="http://test", secret="s" * 40)
FILES = {"0.mp4": b"the video itself", "0.thumbnail.jpg": b"a frame", "0.spritesheet.jpg": b"frames"}


@asynccontextmanager
async def scene(
    broker: MemoryBroker, folder: Path, settings: Settings = SETTINGS
) -> AsyncIterator[tuple[GatewayUnderTest, JobRecord]]:
    """A gateway, and a job that has ended with a video and its pictures."""
    async with gateway(broker, folder, settings) as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        record = await fleet.run((await gw.submit())["id"])
        for name, content in FILES.items():
            await gw.artifacts.put(output_key(record.id, record.epoch, name), content)
        key = output_key(record.id, record.epoch, "0")
        made = Output(
            key=f"{key}.mp4",
            media_type="video/mp4",
            size=16,
            sha256="ab" * 32,
            width=256,
            height=144,
            num_frames=17,
            fps=8,
            thumbnail=f"{key}.thumbnail.jpg",
            spritesheet=f"{key}.spritesheet.jpg",
        )

        def end(running: JobRecord, stamp: Stamp) -> JobRecord:
            folded = lifecycle.fold(running, running.epoch, Succeeded(outputs=(made,)), 1.0, stamp)
            assert folded is not None
            return folded

        yield gw, await fleet.move(record.id, end)


@pytest.fixture
async def made(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[tuple[GatewayUnderTest, JobRecord]]:
    async with scene(broker, tmp_path) as running:
        yield running


async def link(gw: GatewayUnderTest, job: str, **body: object) -> str:
    answer = await gw.client.post(f"/v1/jobs/{job}/outputs/0/link", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "private, no-store"
    return str(answer.json()["url"])


def refused(answer: httpx.Response, status: int = 403) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


async def test_a_job_shows_its_small_pictures_and_which_frames_they_are_of(
    made: tuple[GatewayUnderTest, JobRecord],
) -> None:
    gw, record = made
    view = (await gw.client.get(f"/v1/jobs/{record.id}")).json()["outputs"][0]
    assert view["thumbnail_url"] == f"/v1/jobs/{record.id}/outputs/0/thumbnail"
    sheet = view["spritesheet"]
    assert (sheet["columns"], sheet["rows"], sheet["tile_width"], sheet["tile_height"]) == (5, 4, 160, 90)
    assert sheet["frames"] == list(range(17))
    for url, name in ((view["thumbnail_url"], "0.thumbnail.jpg"), (sheet["url"], "0.spritesheet.jpg")):
        answer = await gw.client.get(url)
        assert (answer.status_code, answer.content) == (200, FILES[name])
        assert answer.headers["content-type"] == "image/jpeg"
        again = await gw.client.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert len({(await gw.client.head(url)).headers["etag"] for url in (view["url"], view["thumbnail_url"])}) == 2


async def test_an_output_without_pictures_has_none(gw_plain: tuple[GatewayUnderTest, str]) -> None:
    gw, job = gw_plain
    view = (await gw.client.get(f"/v1/jobs/{job}")).json()["outputs"][0]
    assert (view["thumbnail_url"], view["spritesheet"]) == (None, None)
    for name in ("thumbnail", "spritesheet"):
        assert refused(await gw.client.get(f"/v1/jobs/{job}/outputs/0/{name}"), 404)
    assert refused(await gw.client.post(f"/v1/jobs/{job}/outputs/0/link", json={"variant": "thumbnail"}), 404)


@pytest.fixture
async def gw_plain(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[tuple[GatewayUnderTest, str]]:
    async with gateway(broker, tmp_path, SETTINGS) as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        yield gw, (await fleet.complete((await gw.submit())["id"])).id


@pytest.mark.parametrize(
    ("variant", "name"), [("output", "0.mp4"), ("thumbnail", "0.thumbnail.jpg"), ("spritesheet", "0.spritesheet.jpg")]
)
async def test_a_link_gives_the_file_and_ranges_of_it(
    made: tuple[GatewayUnderTest, JobRecord], variant: str, name: str
) -> None:
    gw, record = made
    url = await link(gw, record.id, ttl_s=60, variant=variant)
    assert url.startswith(f"http://test/media/{record.id}/{name}?")
    answer = await gw.client.get(url)
    assert (answer.status_code, answer.content) == (200, FILES[name])
    assert f'filename="{record.id}-{name}"' in answer.headers["content-disposition"]
    assert answer.headers["cache-control"].startswith("private")
    part = await gw.client.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, FILES[name][2:5])
    assert (await gw.client.head(url)).headers["content-length"] == str(len(FILES[name]))


async def test_a_link_needs_no_key_where_everything_else_does(broker: MemoryBroker, tmp_path: Path) -> None:
    settings = replace(SETTINGS, auth="keys", admin_key="a" * 40)
    async with gateway(broker, tmp_path, settings) as gw:
        gw.client.headers["Authorization"] = f"Bearer {settings.admin_key}"
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        job = (await fleet.complete((await gw.submit())["id"])).id
        url = await link(gw, job)
        del gw.client.headers["Authorization"]
        assert (await gw.client.get(url)).content == b"0123456789"
        assert refused(await gw.client.get(f"/v1/jobs/{job}/outputs/0"), 401)
        assert refused(await gw.client.post(f"/v1/jobs/{job}/outputs/0/link", json={}), 401)
        assert refused(await gw.client.get(url.replace("signature=", "signature=x")))


async def test_a_link_dies_with_its_time(made: tuple[GatewayUnderTest, JobRecord]) -> None:
    gw, record = made
    url = await link(gw, record.id, ttl_s=60)
    gw.clock.jump_wall(59)
    assert (await gw.client.get(url)).status_code == 200
    gw.clock.jump_wall(2)
    answer = await gw.client.get(url)
    assert refused(answer)
    assert answer.json()["detail"] == "this link has expired"


async def test_a_link_dies_with_its_job(made: tuple[GatewayUnderTest, JobRecord]) -> None:
    gw, record = made
    urls = [await link(gw, record.id, variant=variant) for variant in ("output", "thumbnail", "spritesheet")]
    assert (await gw.client.delete(f"/v1/jobs/{record.id}")).status_code == 204
    for url in urls:
        assert refused(await gw.client.get(url), 410)
    assert [stored.key async for stored in gw.artifacts.list()] == []


async def test_nothing_of_a_link_can_be_changed(made: tuple[GatewayUnderTest, JobRecord]) -> None:
    gw, record = made
    url = await link(gw, record.id, ttl_s=60)
    expires = parse_qs(urlsplit(url).query)["expires"][0]
    other = "f" * 32
    for changed in (
        url.replace(record.id, other),
        url.replace("0.mp4", "0.thumbnail.jpg"),
        url.replace("0.mp4", "1.mp4"),
        url.replace(expires, str(int(expires) + 1)),
        url.replace(expires, expires + "0"),
        url + "&tenant=other",
        re.sub("signature=.*", "signature=", url),
        re.sub("signature=.*", "signature=%C3%A4", url),
        re.sub("&signature=.*", "", url),
        url.split("?")[0],
    ):
        assert refused(await gw.client.get(changed)), changed


async def test_a_link_of_another_deployment_is_not_taken(made: tuple[GatewayUnderTest, JobRecord]) -> None:
    gw, record = made
    stranger = Links(gw.artifacts, "t" * 40, "http://test", gw.clock.wall)
    assert refused(await gw.client.get(await stranger.url(record, 0, ttl_s=60)))
    replica = Links(gw.artifacts, SETTINGS.secret, "http://test", gw.clock.wall)
    assert (await gw.client.get(await replica.url(record, 0, ttl_s=60))).status_code == 200


async def test_a_link_names_its_tenant_and_opens_no_other_tenants_job(
    made: tuple[GatewayUnderTest, JobRecord],
) -> None:
    """Row 24 of the faults: a link that was made for a job of one tenant finds no job of another."""
    gw, record = made
    forged = await gw.parts.links.url(replace(record, tenant="acme"), 0, ttl_s=60)
    assert "tenant=acme" in forged
    assert refused(await gw.client.get(forged), 404)


@pytest.mark.parametrize(
    "body", [{"ttl_s": 0}, {"ttl_s": 604801}, {"ttl_s": "long"}, {"variant": "audio"}, {"download": True}]
)
async def test_a_link_that_cannot_be_is_refused(
    made: tuple[GatewayUnderTest, JobRecord], body: dict[str, object]
) -> None:
    gw, record = made
    answer = await gw.client.post(f"/v1/jobs/{record.id}/outputs/0/link", json=body)
    assert refused(answer, 422)
    assert answer.json()["errors"][0]["field"] in body


async def test_what_does_not_exist_has_no_link(made: tuple[GatewayUnderTest, JobRecord]) -> None:
    gw, record = made
    for path in (f"{record.id}/outputs/1", f"{record.id}/outputs/x", f"{'f' * 32}/outputs/0"):
        assert refused(await gw.client.post(f"/v1/jobs/{path}/link", json={}), 404), path


# --- a bucket ---------------------------------------------------------------------------------------------------------


def in_bucket(s3: S3Server, **more: object) -> Settings:
    return replace(
        SETTINGS,
        artifacts=s3.location(),
        s3_endpoint=s3.url,
        s3_region=s3.options.region,
        s3_access_key=s3.options.access_key,
        s3_secret_key=s3.options.secret_key,
        s3_allow_http=True,
        **more,
    )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> Settings:
    """Settings of a gateway whose store is a bucket."""
    settings = in_bucket(s3)
    monkeypatch.setattr("tests.support.gateway.open_store", lambda _: open_artifacts(settings))
    return settings


@pytest.mark.parametrize("variant", ["output", "thumbnail", "spritesheet"])
async def test_a_bucket_hands_files_out_itself(
    broker: MemoryBroker, tmp_path: Path, s3: S3Server, bucket: Settings, variant: Variant
) -> None:
    async with scene(broker, tmp_path, bucket) as (gw, record):
        url = await link(gw, record.id, ttl_s=60, variant=variant)
        assert url.startswith(s3.url)
        async with httpx.AsyncClient(trust_env=False) as outside:
            answer = await outside.get(url)
            assert answer.status_code == 200
            assert answer.content in FILES.values()
            assert (await gw.client.delete(f"/v1/jobs/{record.id}")).status_code == 204
            assert (await outside.get(url)).status_code == 404


@pytest.mark.parametrize("redirect", [False, True])
async def test_a_gateway_passes_a_buckets_files_on_or_sends_there(
    broker: MemoryBroker, tmp_path: Path, s3: S3Server, bucket: Settings, redirect: bool
) -> None:
    async with scene(broker, tmp_path, replace(bucket, s3_redirect=redirect)) as (gw, record):
        path = f"/v1/jobs/{record.id}/outputs/0"
        answer = await gw.client.get(path, headers={"Range": "bytes=4-8"})
        if redirect:
            assert (answer.status_code, answer.headers["cache-control"]) == (302, "private, no-store")
            async with httpx.AsyncClient(trust_env=False) as outside:
                answer = await outside.get(answer.headers["location"], headers={"Range": "bytes=4-8"})
        assert (answer.status_code, answer.content) == (206, b"video")
        assert (await gw.client.head(path)).headers["content-length"] == "16"
        assert refused(await gw.client.get(f"/v1/jobs/{record.id}/outputs/7"), 404)


async def test_a_bucket_that_is_away_is_503(
    broker: MemoryBroker, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = in_bucket(s3, s3_timeout_s=0.2)
    monkeypatch.setattr("tests.support.gateway.open_store", lambda _: open_artifacts(settings))
    async with scene(broker, tmp_path, settings) as (gw, record):
        s3.broken = True
        assert refused(await gw.client.get(f"/v1/jobs/{record.id}/outputs/0"), 503)
        s3.broken = False
        assert (await gw.client.get(f"/v1/jobs/{record.id}/outputs/0")).content == FILES["0.mp4"]
