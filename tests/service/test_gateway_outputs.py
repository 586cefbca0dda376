"""Files that jobs made, whole and in part."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.messages import JobRecord
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


@pytest.fixture
async def fleet(gw: GatewayUnderTest) -> Fleet:
    return Fleet(gw.broker, gw.artifacts, gw.clock)


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def made(gw: GatewayUnderTest, fleet: Fleet) -> JobRecord:
    return await fleet.complete((await gw.submit())["id"], b"0123456789")


async def test_an_output_is_fetched_whole(gw: GatewayUnderTest, made: JobRecord) -> None:
    (output,) = (await gw.client.get(f"/v1/jobs/{made.id}")).json()["outputs"]
    answer = await gw.client.get(output["url"])
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-length"] == "10"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == f'"{output["sha256"]}"'
    assert answer.headers["content-disposition"] == f'inline; filename="{made.id}-0.mp4"'
    saved = await gw.client.get(output["url"] + "?download=1", headers={"Accept": "application/binary"})
    assert saved.headers["content-disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-999", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("nonsense", 200, b"0123456789", None),
    ],
)
async def test_a_part_of_an_output(
    gw: GatewayUnderTest, made: JobRecord, asked: str, status: int, content: bytes, content_range: str | None
) -> None:
    answer = await gw.client.get(f"/v1/jobs/{made.id}/outputs/0", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers.get("content-range") == content_range
    assert answer.headers["content-length"] == str(len(content))


async def test_a_range_outside_the_output_is_416(gw: GatewayUnderTest, made: JobRecord) -> None:
    answer = await gw.client.get(f"/v1/jobs/{made.id}/outputs/0", headers={"Range": "bytes=10-"})
    assert is_problem(answer, 416)
    assert answer.headers["content-range"] == "bytes */10"


async def test_validators(gw: GatewayUnderTest, made: JobRecord) -> None:
    path = f"/v1/jobs/{made.id}/outputs/0"
    etag = (await gw.client.get(path)).headers["etag"]
    unchanged = await gw.client.get(path, headers={"If-None-Match": f"W/{etag}"})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    same = await gw.client.get(path, headers={"Range": "bytes=0-1", "If-Range": etag})
    assert (same.status_code, same.content) == (206, b"01")
    stale = await gw.client.get(path, headers={"Range": "bytes=0-1", "If-Range": '"old"'})
    assert (stale.status_code, stale.content) == (200, b"0123456789")
    head = await gw.client.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    assert head.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("number", ["1", "-1", "x", "00000", "1e3", "٠", "%00", "0.0"])
async def test_an_output_that_does_not_exist_is_404(gw: GatewayUnderTest, made: JobRecord, number: str) -> None:
    assert is_problem(await gw.client.get(f"/v1/jobs/{made.id}/outputs/{number}"), 404)


async def test_a_job_without_outputs_yet(gw: GatewayUnderTest) -> None:
    job = (await gw.submit())["id"]
    answer = await gw.client.get(f"/v1/jobs/{job}/outputs/0")
    assert is_problem(answer, 404)
    assert "the job is queued" in answer.json()["detail"]


async def test_an_output_that_was_swept_is_404(gw: GatewayUnderTest, made: JobRecord) -> None:
    await gw.artifacts.delete_prefix(made.id)
    assert is_problem(await gw.client.get(f"/v1/jobs/{made.id}/outputs/0"), 404)
