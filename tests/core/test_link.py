"""The frames between agent and rank 0: every one survives the wire, and nothing else gets through."""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import AttentionCache, JobRequest, Layout
from workers import link
from workers.engine.dummy import card
from workers.link import (
    MAX_FRAME,
    Broke,
    Cancel,
    CannotLoad,
    Done,
    FromAgent,
    FromRank,
    FromRankReader,
    Hello,
    LinkClosed,
    LinkError,
    Loading,
    OutputFile,
    Pulse,
    Quit,
    Ready,
    Refused,
    Run,
    Stopped,
    pack,
    receive_from_agent,
    send,
    unpack_from_agent,
    unpack_from_rank,
)

REQUEST = JobRequest(
    model="dummy",
    task="text-to-image",
    prompt="ein Leuchtturm 灯塔",
    width=64,
    height=64,
    num_frames=1,
    fps=16,
    steps=3,
    guidance_scale=5.0,
    shift=5.0,
    solver="unipc",
    seed=7,
    cache=AttentionCache(start_step=12, interval=4, end_step=37),
)
FROM_RANK: tuple[FromRank, ...] = (
    Hello(pid=1, width=8, device="npu", device_name="910B"),
    Loading(fraction=0.5, what="transformer"),
    Ready(cards=(card("dummy"),), layouts=(Layout(cfg=2, ulysses=4, vae_parallel=True),)),
    CannotLoad(message="vae: shard 2 of 3 is missing"),
    Pulse(),
    Pulse(job="j", epoch=2, stage="denoise", step=3, total_steps=50, eta_s=12.5, step_s=0.25),
    Done(
        job="j",
        epoch=2,
        files=(OutputFile(name="0.mp4", media_type="video/mp4", width=832, height=480, num_frames=81, fps=16),),
        used={"cfg": 2, "seconds": 1.5, "cached": True, "layout": "cfg2"},
    ),
    Refused(job="j", epoch=2, reason="input_rejected", message="not a picture"),
    Broke(job="j", epoch=2, reason="out_of_memory", message="", poisoned=True),
    Stopped(job="j", epoch=2, step=7),
)
FROM_AGENT: tuple[FromAgent, ...] = (
    Run(job="j", epoch=2, request=REQUEST, inputs={"image": "/in/image.png"}, out_dir="/out"),
    Cancel(job="j", epoch=2),
    Quit(),
)


@pytest.mark.parametrize("frame", FROM_RANK, ids=lambda frame: type(frame).__name__)
def test_frames_from_rank_0_survive_the_wire(frame: FromRank) -> None:
    assert unpack_from_rank(pack(frame)[4:]) == frame


@pytest.mark.parametrize("frame", FROM_AGENT, ids=lambda frame: type(frame).__name__)
def test_frames_from_the_agent_survive_the_wire(frame: FromAgent) -> None:
    assert unpack_from_agent(pack(frame)[4:]) == frame


def test_a_frame_begins_with_its_length() -> None:
    wire = pack(Quit())
    assert struct.unpack(">I", wire[:4]) == (len(wire) - 4,)


def test_a_frame_of_the_other_direction_is_none() -> None:
    with pytest.raises(LinkError):
        unpack_from_agent(pack(Pulse())[4:])
    with pytest.raises(LinkError):
        unpack_from_rank(pack(Quit())[4:])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x91" * 200_000,
        b"\x82\xa4kind\xa4quit\xa1x" + b"\x91" * 200_000,
        pack(Hello(pid=1, width=1, device="a", device_name="bbbb"))[4:].replace(b"bbbb", b"\xff\xfe\xfd\xfc"),
    ],
    ids=["empty", "reserved", "no kind", "http", "deep", "deep in an unknown field", "bad utf-8"],
)
def test_what_is_no_frame_is_a_link_error(body: bytes) -> None:
    with pytest.raises(LinkError):
        unpack_from_rank(body)
    with pytest.raises(LinkError):
        unpack_from_agent(body)


@given(st.binary(max_size=64), st.integers(0, 200))
def test_any_damage_gives_a_frame_or_a_link_error(noise: bytes, at: int) -> None:
    whole = pack(FROM_RANK[6])[4:]
    body = whole[:at] + noise + whole[at + len(noise) :]
    try:
        frame = unpack_from_rank(body)
    except LinkError:
        return
    assert isinstance(frame, link.Frame)


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(LinkError):
        pack(CannotLoad(message="x" * MAX_FRAME))


def test_an_unknown_field_is_ignored() -> None:
    body = pack(Cancel(job="j", epoch=1))[4:]
    assert body[0] == 0x83, "a map of three"
    newer = b"\x84" + body[1:] + b"\xa5extra\x01"
    assert unpack_from_agent(newer) == Cancel(job="j", epoch=1)


async def _read(data: bytes) -> FromRank:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await FromRankReader(reader).read()


async def test_the_agent_reads_whole_frames_only() -> None:
    wire = pack(FROM_RANK[5])
    assert await _read(wire) == FROM_RANK[5]
    for cut in (0, 3, 4, len(wire) - 1):
        with pytest.raises(LinkClosed):
            await _read(wire[:cut])


async def test_the_agent_refuses_an_announced_length_before_it_waits_for_it() -> None:
    with pytest.raises(LinkError):
        await _read(struct.pack(">I", MAX_FRAME + 1))


def test_rank_0_reads_frames_in_pieces_and_notices_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(pack(FROM_AGENT[0]) + pack(Quit()) + b"\0\0")
        assert receive_from_agent(ours) == FROM_AGENT[0]
        assert receive_from_agent(ours) == Quit()
        theirs.close()
        with pytest.raises(LinkClosed):
            receive_from_agent(ours)


def test_rank_0_refuses_a_length_beyond_the_limit() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack(">I", MAX_FRAME + 1))
        with pytest.raises(LinkError):
            receive_from_agent(ours)


def test_rank_0_sends_until_the_agent_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        send(ours, Pulse())
        assert theirs.recv(100) == pack(Pulse())
        theirs.close()
        with pytest.raises(LinkClosed):
            send(ours, Pulse())


def test_connecting_to_nobody_says_that_the_agent_is_gone() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(LinkClosed):
        link.connect(Path(folder) / "link")
