"""What the bus takes for granted of nats-py, which is not part of its public interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.nats_bus.client import DirectClient, Msg, make_head, parse_head
from tests.support.nats_server import NatsServer

BOUND_S = 60.0


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[DirectClient]:
    made = DirectClient()
    settings = nats_server.settings()
    await made.connect(servers=[settings.nats_url], token=settings.nats_token, allow_reconnect=False)
    yield made
    await made.close()


async def test_messages_are_handed_on_as_they_are_read(client: DirectClient) -> None:
    """It fails if the library reads messages by another way than the method that is overridden."""
    got: list[Msg] = []
    sid = client.listen("a.*", got.append)
    client.tell("a.b", b"1", "")
    client.tell("a.c", b"2", "back", make_head({"Name": "value", "Other": "x: y"}))
    client.tell("b.a", b"3", "")
    await client.flush()
    assert [(message.subject, message.reply, message.data) for message in got] == [
        ("a.b", "", b"1"),
        ("a.c", "back", b"2"),
    ]
    assert (got[0].headers(), got[0].status) == ({}, "")
    assert (got[1].headers(), got[1].status) == ({"Name": "value", "Other": "x: y"}, "")
    client.unlisten(sid)
    client.tell("a.b", b"4", "")
    await client.flush()
    assert len(got) == 2


async def test_a_flush_returns_after_the_server_has_taken_all_that_was_told(client: DirectClient) -> None:
    """It fails if the library's PING overtakes what waits to be sent, as its own does."""
    other = DirectClient()
    assert client.connected_url is not None
    await other.connect(servers=[client.connected_url.geturl()], token=client.options["token"], allow_reconnect=False)
    try:
        for number in range(300):
            heard = asyncio.Event()
            sid = client.listen(f"s.{number}", lambda _, heard=heard: heard.set())  # type: ignore[misc]
            await client.flush()
            other.tell(f"s.{number}", b"", "")
            async with asyncio.timeout(BOUND_S):
                await heard.wait()
            client.unlisten(sid)
    finally:
        await other.close()


async def test_an_answer_to_one_who_has_given_up_does_not_end_the_reading(client: DirectClient) -> None:
    gone = asyncio.get_running_loop().create_future()
    await client._send_ping(gone)
    gone.cancel()
    got: list[Msg] = []
    client.listen("a", got.append)
    client.tell("a", b"1", "")
    await client.flush()
    assert [message.data for message in got] == [b"1"]


async def test_nobody_listens_has_its_status(client: DirectClient) -> None:
    answers: list[Msg] = []
    inbox = client.new_inbox()
    client.listen(inbox, answers.append)
    client.tell("nobody", b"", inbox)
    await client.flush()
    assert [(answer.status, answer.data) for answer in answers] == [("503", b"")]


def test_a_head_is_read() -> None:
    head = b"NATS/1.0\r\nNats-Sequence: 7\r\nKV-Operation: DEL\r\n\r\n"
    assert parse_head(head) == {"Nats-Sequence": "7", "KV-Operation": "DEL"}
    assert Msg("a", "", b"NATS/1.0 404 No Messages\r\n\r\n", b"").status == "404"
