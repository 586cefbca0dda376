"""The writes of a turn leave with one call; nothing is held back beyond that, and nothing is lost at a close."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.one_write import OneWrite


class Wire:
    """A transport that keeps what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def over(wire: Wire) -> OneWrite:
    return OneWrite(cast("Any", wire), asyncio.get_running_loop())


async def test_the_writes_of_a_turn_leave_together() -> None:
    wire = Wire()
    transport = over(wire)
    transport.write(b"head ")
    transport.write(b"body")
    assert wire.calls == []
    await asyncio.sleep(0)
    transport.write(b"next")
    await asyncio.sleep(0)
    assert wire.calls == [b"head body", b"next"]


async def test_much_is_not_held_back() -> None:
    wire = Wire()
    transport = over(wire)
    transport.write(b"a")
    transport.write(b"b" * 70_000)
    assert [len(call) for call in wire.calls] == [70_001]
    await asyncio.sleep(0)
    assert len(wire.calls) == 1


async def test_a_close_sends_first_and_nothing_follows_it() -> None:
    wire = Wire()
    transport = over(wire)
    transport.write(b"last")
    transport.close()
    transport.write(b"late")
    await asyncio.sleep(0)
    assert wire.calls == [b"last", "close"]


async def test_all_else_is_the_transports() -> None:
    assert over(Wire()).get_extra_info("peername") == "the peername"
