"""Inputs by URL: the agent fetches them when the job runs, and what cannot be had ends the job with the reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.decoding import HEADER_SIZE, Limits
from shared.intake import Intake
from shared.messages import Failed, Input, Outcome, Succeeded
from shared.settings import Settings
from tests.support.agent_scene import Scene, ready_scene
from tests.support.gateway import png
from tests.support.hostile import program
from tests.support.http_server import said, server
from tests.support.scripted_rank import a_request

LOCAL = Settings(drain_grace_s=60.0, private_networks="127.0.0.1/32")
BOUND_S = 90.0


async def outcome(scene: Scene, url: str, job: str = "a" * 32, **given: str) -> Outcome:
    """What became of a job whose picture lies there."""
    request = a_request(image=Input(url=url), **given)
    await scene.house.assign(job, 1, request=request)
    ending = asyncio.ensure_future(scene.house.result(job, 1))
    async with asyncio.timeout(BOUND_S):
        while not ending.done():
            await asyncio.wait((ending,), timeout=0.02)
            await scene.clock.advance(1.0)
    return ending.result().outcome


async def test_the_rank_gets_the_file(tmp_path: Path) -> None:
    async with server(lambda _: said(png())) as (url, seen), ready_scene(tmp_path, LOCAL) as scene:
        run = await scene.run("a" * 32, request=a_request(image=Input(url=f"{url}/cat.png")))
        made = await asyncio.to_thread(Path(run.inputs["image"]).read_bytes)
        request = a_request()
        assert made[HEADER_SIZE:] == b"\x40\x80\xc0" * request.width * request.height
        assert seen == ["GET /cat.png HTTP/1.1"]
        scene.done(run)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"<html>", "200 OK", "image: not a file of these types"),
        (png()[:20], "200 OK", "image: a damaged or truncated image/png"),
        (png(5000, 5000), "200 OK", "image: 5000x5000 is too large"),
        (b"", "404 Not Found", "image: refused: the server answered 404"),
    ],
)
async def test_what_is_no_picture_is_refused(tmp_path: Path, body: bytes, status: str, words: str) -> None:
    async with server(lambda _: said(body, status)) as (url, seen), ready_scene(tmp_path, LOCAL) as scene:
        ended = await outcome(scene, url)
        assert isinstance(ended, Failed)
        assert (ended.reason, ended.final) == ("input_rejected", True)
        assert ended.message.startswith(words)
        assert len(seen) == 1


async def test_a_server_that_fails_is_asked_again(tmp_path: Path) -> None:
    async with server(lambda _: said(b"", "503 Busy")) as (url, seen), ready_scene(tmp_path, LOCAL) as scene:
        ended = await outcome(scene, url)
        assert isinstance(ended, Failed)
        assert (ended.reason, ended.message) == (
            "input_rejected",
            "image: could not be fetched: the server answered 503",
        )
        assert len(seen) == 3


async def test_a_private_address_is_not_reached(tmp_path: Path) -> None:
    """Row 21 of the faults."""
    async with server(lambda _: said(png())) as (url, seen), ready_scene(tmp_path) as scene:
        ended = await outcome(scene, url)
        assert isinstance(ended, Failed)
        assert (ended.reason, ended.message) == (
            "input_rejected",
            "image: refused: 127.0.0.1: not a public address",
        )
        assert seen == []


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("crash", "image: its decoder crashed (signal 11)"),
        ("run_away", "image: it takes more than 1 s of computing to decode"),
        ("hang", "image: it was not decoded within 2 s"),
        ("connect", "image: its decoder tried what no decoder does, and was stopped"),
    ],
)
async def test_a_decoder_that_is_taken_over_costs_its_job_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str, words: str
) -> None:
    """Row 40 of the faults: the child dies, the job fails, the group serves the next job."""
    # Only what hangs is to meet the clock: on a busy machine the others need more of it.
    decoder = Intake(program=program(act), limits=Limits(cpu_s=1, wall_s=2.0 if act == "hang" else BOUND_S))
    monkeypatch.setattr("workers.agent.downloads.Intake", lambda: decoder)
    async with server(lambda _: said(png())) as (url, _), ready_scene(tmp_path, LOCAL) as scene:
        request = a_request(image=Input(url=url))
        await scene.house.assign("a" * 32, 1, request=request)
        async with asyncio.timeout(BOUND_S):
            ended = (await scene.house.result("a" * 32, 1)).outcome
        assert isinstance(ended, Failed)
        assert (ended.reason, ended.message, ended.final) == ("input_rejected", words, True)
        assert scene.files_left() == []
        scene.done(await scene.run("b" * 32))
        assert isinstance((await scene.house.result("b" * 32, 1)).outcome, Succeeded)


async def test_a_clip_by_url_that_is_a_playlist_fetches_nothing_more(tmp_path: Path) -> None:
    """Row 20 of the faults: a playlist that is named and typed as an mp4."""

    def answer(head: str) -> list[bytes]:
        host = next(line for line in head.splitlines() if line.lower().startswith("host:")).partition(" ")[2]
        return said(f"#EXTM3U\n#EXTINF:1,\nhttp://{host}/inside.ts\n".encode(), "200 OK", "Content-Type: video/mp4")

    async with server(answer) as (url, seen), ready_scene(tmp_path, LOCAL) as scene:
        request = a_request(video=Input(url=f"{url}/a.mp4"))
        await scene.house.assign("a" * 32, 1, request=request)
        async with asyncio.timeout(BOUND_S):
            ended = (await scene.house.result("a" * 32, 1)).outcome
        assert isinstance(ended, Failed)
        assert (ended.reason, ended.message) == ("input_rejected", "video: not a file of these types: video/mp4")
        assert seen == ["GET /a.mp4 HTTP/1.1"]
