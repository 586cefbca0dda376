"""What comes from a server is read as the library reads it, however it is cut on its way."""

from __future__ import annotations

import random
from typing import Any

import pytest
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from shared.nats_bus import parser
from shared.nats_bus.parser import DirectParser

HEAD = b"NATS/1.0\r\nName: value\r\n\r\n"
LARGE = b"MSG large 9 3000\r\n" + b"MSG a 1 2\r\n!" * 250 + b"\r\n"
SAID = [
    b"MSG a.b 1 5\r\nhello\r\n",
    b"MSG a.b 1 back.7 2\r\n\r\n\r\n",
    b"MSG a.b 2 0\r\n\r\n",
    b"PING\r\n",
    b"HMSG a.c 3 %d %d\r\n%sdata\r\n" % (len(HEAD), len(HEAD) + 4, HEAD),
    b"HMSG a.c 3 back.8 %d %d\r\n%s\r\n" % (len(HEAD), len(HEAD), HEAD),
    b"+OK\r\n",
    LARGE,
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n",
    b"PONG\r\n",
    b'INFO {"server_id":"x"}\r\n',
    b"MSG  spaced\t4  1\r\nx\r\n",
]
Heard = list[tuple[object, ...]]


class Client:
    """Keeps what a parser tells it."""

    def __init__(self) -> None:
        self.heard: Heard = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, head: bytes | None) -> None:
        self.arrived(sid, subject, reply, head or b"", data)

    def arrived(self, sid: int, subject: bytes, reply: bytes, head: bytes, data: bytes) -> None:
        self.heard.append((sid, bytes(subject), bytes(reply), head, data))

    async def _process_ping(self) -> None:
        self.heard.append(("ping",))

    async def _process_pong(self) -> None:
        self.heard.append(("pong",))

    async def _process_err(self, text: str) -> None:
        self.heard.append(("error", text))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.heard.append(("info", info["server_id"]))


async def by_the_library(said: bytes) -> Heard:
    client = Client()
    await Parser(client).parse(said)
    return client.heard


async def by_ours(parts: list[bytes]) -> Heard:
    client = Client()
    direct = DirectParser(client, client.arrived)
    for part in parts:
        await direct.parse(part)
    return client.heard


@pytest.mark.parametrize("kept", [64 * 1024, 16], ids=["kept", "left to the library"])
async def test_it_is_read_as_the_library_reads_it_wherever_it_is_cut(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "_MOST_KEPT", kept)
    said = b"".join(SAID)
    expected = await by_the_library(said)
    assert len(expected) == len(SAID) - 1  # all but +OK, of which nobody is told
    for cut in range(len(said)):
        assert await by_ours([said[:cut], said[cut:]]) == expected, said[max(0, cut - 20) : cut]


async def test_in_any_order_and_in_any_parts() -> None:
    chance = random.Random(7)
    for _ in range(300):
        said = b"".join(chance.choices(SAID, k=20))
        cuts = sorted(chance.randrange(len(said)) for _ in range(chance.randrange(30)))
        parts = [said[start:end] for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]
        assert await by_ours(parts) == await by_the_library(said)


async def test_whole_messages_are_not_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Parser, data: bytes = b"") -> None:
        raise AssertionError(data)

    messages = [said for said in SAID if said.startswith((b"MSG", b"HMSG"))]
    expected = await by_the_library(b"".join(messages))
    monkeypatch.setattr(Parser, "parse", refuse)
    assert await by_ours([b"".join(messages)]) == expected
    assert await by_ours([b"".join(messages)[:-3], messages[-1][-3:]]) == expected


@pytest.mark.parametrize(
    "said",
    [
        b"MSG a\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a 1 -5\r\nhello\r\n",
        b"MSG a x 1 2 3 4\r\n",
        b"HMSG a 1 9\r\n",
        b"WHAT\r\n",
    ],
)
async def test_what_is_no_message_is_refused_as_the_library_does(said: bytes) -> None:
    for reading in (by_the_library(said), by_ours([said])):
        with pytest.raises(ProtocolError):
            await reading


async def test_after_a_reset_nothing_is_left_of_before() -> None:
    client = Client()
    direct = DirectParser(client, client.arrived)
    await direct.parse(b"MSG a 1 5\r\nhel")
    direct.reset()
    await direct.parse(b"MSG b 2 1\r\nx\r\n")
    assert client.heard == [(2, b"b", b"", b"", b"x")]
