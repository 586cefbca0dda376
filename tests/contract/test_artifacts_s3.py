"""What a bucket does beyond what every store does: signed URLs, uploads that are not ended, a server that fails."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared.artifacts import Artifacts, open_store
from shared.errors import ArtifactError, ArtifactNotFound, InvalidKey
from shared.s3 import S3Options
from shared.settings import load
from shared.stores import open_artifacts
from tests.support.s3_server import S3Server

MiB = 1024 * 1024


@pytest.fixture
def location(s3: S3Server) -> str:
    return s3.location()


@pytest.fixture
def store(s3: S3Server, location: str) -> Artifacts:
    return open_store(location, s3.options)


def get(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.get(url, headers=headers)


def put(url: str, content: bytes) -> int:
    with httpx.Client(trust_env=False) as client:
        return client.put(url, content=content).status_code


async def signed(store: Artifacts, key: str, ttl_s: float = 60) -> str:
    (url,) = await store.sign("GET", [key], ttl_s)
    return url


async def test_a_signed_url_gives_the_file_with_its_type_and_a_name(store: Artifacts) -> None:
    await store.put("job1/2/0.mp4", b"frames")
    answer = await asyncio.to_thread(get, await signed(store, "job1/2/0.mp4"), {"Range": "bytes=1-3"})
    assert (answer.status_code, answer.content) == (206, b"ram")
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"] == 'inline; filename="job1-0.mp4"'


async def test_a_large_file_has_its_type_too_and_comes_back_in_pieces(store: Artifacts) -> None:
    data = os.urandom(19 * MiB)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), MiB):
            yield data[start : start + MiB]

    await store.put("job1/2/0.mp4", chunks())
    answer = await asyncio.to_thread(get, await signed(store, "job1/2/0.mp4"), {"Range": "bytes=0-0"})
    assert answer.headers["content-type"] == "video/mp4"
    assert b"".join([chunk async for chunk in store.read("job1/2/0.mp4", 5, 18 * MiB)]) == data[5 : 18 * MiB]


async def test_a_signed_url_is_for_its_key_its_method_and_its_time(s3: S3Server, store: Artifacts) -> None:
    await store.put("job1/2/0.mp4", b"mine")
    await store.put("job2/1/0.mp4", b"another's")
    url = await signed(store, "job1/2/0.mp4", 60)
    assert (await asyncio.to_thread(get, url)).status_code == 200
    assert (await asyncio.to_thread(get, url.replace("job1/2", "job2/1"))).status_code == 403
    assert await asyncio.to_thread(put, url, b"x") == 403
    assert (await asyncio.to_thread(get, url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))).status_code == 403
    s3.ahead_s = 59 - 5
    assert (await asyncio.to_thread(get, url)).status_code == 200
    s3.ahead_s = 61
    assert (await asyncio.to_thread(get, url)).status_code == 403


async def test_a_signed_url_dies_with_its_file(store: Artifacts) -> None:
    await store.put("job1/2/0.mp4", b"mine")
    url = await signed(store, "job1/2/0.mp4")
    await store.delete_prefix("job1")
    assert (await asyncio.to_thread(get, url)).status_code == 404


async def test_a_signed_url_is_good_for_a_week_at_most(store: Artifacts) -> None:
    assert "X-Amz-Expires=604800&" in await signed(store, "a/1/b", 1e9)
    assert "X-Amz-Expires=1&" in await signed(store, "a/1/b", -5)


async def test_urls_for_clients_name_the_endpoint_that_clients_reach(s3: S3Server, location: str) -> None:
    options = replace(s3.options, public_endpoint="https://media.example.org", path_style=True)
    url = await signed(open_store(location, options), "a/1/b")
    assert url.startswith(f"https://media.example.org/{location.removeprefix('s3://')}/a/1/b?")
    options = replace(options, path_style=False)
    url = await signed(open_store(location, options), "a/1/b")
    assert url.startswith(f"https://{location.split('/')[2]}.media.example.org/fleet/files/a/1/b?")


async def test_a_folder_signs_nothing_and_a_bad_key_is_not_signed(store: Artifacts, tmp_path: Path) -> None:
    folder = open_store(str(tmp_path))
    assert (folder.signs, store.signs) == (False, True)
    with pytest.raises(ArtifactError, match="signs no URLs"):
        await folder.sign("GET", ["a/b"], 60)
    with pytest.raises(InvalidKey):
        await store.sign("GET", ["a/../b"], 60)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_an_upload_that_is_not_ended_leaves_no_parts(
    s3: S3Server, store: Artifacts, location: str, how: str
) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * (9 * MiB)
        reached.set()
        if how == "failed":
            raise OSError("the disk broke")
        await asyncio.Event().wait()

    writing = asyncio.create_task(store.put("a/1/b", endless()))
    async with asyncio.timeout(60):
        await reached.wait()
        if how == "cancelled":
            writing.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else OSError):
            await writing
    assert await asyncio.to_thread(s3.unfinished, location) == []
    with pytest.raises(ArtifactNotFound):
        await store.stat("a/1/b")


async def test_a_server_that_fails_is_an_error_of_the_store_within_bounds(s3: S3Server, location: str) -> None:
    store = open_store(location, replace(s3.options, timeout_s=0.2))
    await store.put("a/1/b", b"1")
    s3.broken = True
    async with asyncio.timeout(60):
        with pytest.raises(ArtifactError):
            await store.put("a/1/b", b"2")
        with pytest.raises(ArtifactError):
            await anext(store.read("a/1/b"))
        with pytest.raises(ArtifactError):
            await store.delete_prefix("a")
    s3.broken = False
    assert [chunk async for chunk in store.read("a/1/b")] == [b"1"]


async def test_a_server_that_never_answers_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        options = S3Options(
            endpoint=endpoint, region="x", access_key="a", secret_key="b", allow_http=True, timeout_s=0.1
        )
        async with asyncio.timeout(60):
            with pytest.raises(ArtifactError):
                await open_store("s3://bucket", options).stat("a/1/b")


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        ("s3://", S3Options(), "not s3://bucket"),
        ("s3://b", S3Options(endpoint="minio:9000"), "an S3 endpoint is"),
        ("s3://b", S3Options(endpoint="http://minio:9000"), "GENFLEET_S3_ALLOW_HTTP"),
        ("s3://b", S3Options(access_key="a"), "one of the two is missing"),
        ("s3://b", S3Options(ca="no certificate"), "s3:"),
    ],
)
def test_what_cannot_be_right_is_refused_at_the_start(location: str, options: S3Options, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_store(location, options)


async def test_the_settings_reach_the_bucket_with_credentials_from_a_file(
    s3: S3Server, location: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    environ = s3.environ(location)
    secret.write_text(environ.pop("GENFLEET_S3_SECRET_KEY") + "\n")
    store = open_artifacts(load({**environ, "GENFLEET_S3_SECRET_KEY_FILE": str(secret)}))
    await store.put("a/1/b.png", b"1")
    assert (await asyncio.to_thread(get, await signed(store, "a/1/b.png"))).content == b"1"
