"""Row 23 of the faults, over real sockets: what a try may reach, how long it waits, what it makes of each answer."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterable
from functools import partial

import pytest
from msgspec.structs import replace

from gateway.webhooks.schedule import Failed, Told
from gateway.webhooks.sending import GuardedSender, policy_of, resolve_apart
from shared.errors import SettingsError
from shared.guarded_http import GuardedHttp, Policy
from shared.settings import Settings
from tests.support.http_server import said, server

HERE = Policy(private=(ipaddress.ip_network("127.0.0.1/32"),), max_redirects=0)
BODY, HEADERS = b'{"type":"job.succeeded"}', {"webhook-id": "msg_1", "content-type": "application/json"}
BOUND_S = 60.0


def _always(answer: list[bytes], _: str) -> list[bytes]:
    return answer


async def sent(url: str, policy: Policy = HERE) -> Told | Failed:
    async with asyncio.timeout(BOUND_S):
        return await GuardedSender(GuardedHttp(policy)).send(url, BODY, HEADERS)


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "299 Fine"])
async def test_a_receiver_that_takes_it(status: str) -> None:
    heads: list[str] = []

    def answer(head: str) -> Iterable[bytes]:
        heads.append(head.lower())
        return said(b"", status)

    async with server(answer) as (url, seen):
        assert await sent(f"{url}/hooks?key=1") == Told(int(status[:3]))
        assert seen == ["POST /hooks?key=1 HTTP/1.1"]
        for line in ("webhook-id: msg_1", "content-type: application/json", f"content-length: {len(BODY)}"):
            assert line in heads[0]


async def test_a_redirect_is_a_failure_and_not_followed() -> None:
    async with server(lambda _: said(b"")) as (inside, reached):
        for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent"):
            answer = said(b"", status, f"Location: {inside}/")
            async with server(partial(_always, answer)) as (url, seen):
                found = await sent(url)
                assert isinstance(found, Failed)
                assert (found.status, found.final, found.down) == (int(status[:3]), False, False)
                assert len(seen) == 1
        assert reached == []


async def test_an_answer_says_when_to_come_back() -> None:
    async with server(lambda _: said(b"", "503 Later", "Retry-After: 77")) as (url, _):
        assert await sent(url) == Failed(error="answered 503", status=503, down=True, retry_after_s=77.0)


async def test_one_that_accepts_and_says_nothing_costs_the_time_of_one_try() -> None:
    async with server(None) as (url, seen):
        found = await sent(url, replace(HERE, connect_s=0.2, total_s=0.2))
        assert isinstance(found, Failed)
        assert (found.status, found.down, found.final) == (0, True, False)
        assert len(seen) == 1


async def test_what_it_says_after_its_answer_is_not_waited_for() -> None:
    endless = (f"HTTP/1.1 200 OK\r\nContent-Length: {1 << 40}\r\n\r\n".encode(), *(b"x" * 65536 for _ in range(64)))
    async with server(lambda _: endless) as (url, _):
        assert await sent(url) == Told(200)


@pytest.mark.parametrize(
    "talk", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000]
)
async def test_one_that_speaks_no_http_is_a_failure(talk: bytes) -> None:
    async with server(lambda _: (talk,)) as (url, _):
        found = await sent(url)
        assert isinstance(found, Failed)
        assert (found.status, found.final) == (0, False)


async def test_nobody_there_is_a_failure() -> None:
    async with server(lambda _: said(b"")) as (url, _):
        pass
    found = await sent(url)
    assert isinstance(found, Failed)
    assert found.down


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_private_address_is_not_reached_and_not_tried_again(host: str) -> None:
    async with server(lambda _: said(b"")) as (url, seen):
        port = url.rpartition(":")[2]
        found = await sent(f"http://{host}:{port}/", Policy(ports=frozenset({int(port)})))
        assert isinstance(found, Failed)
        assert found.final or found.status == 0
        assert seen == []


async def test_a_name_that_turns_private_after_the_submit_is_refused_when_it_is_connected() -> None:
    answers = iter((["93.184.216.34"], ["127.0.0.1"], ["93.184.216.34", "10.0.0.1"]))

    async def rebinding(host: str, port: int) -> list[str]:
        return next(answers)

    async with server(lambda _: said(b"")) as (url, seen):
        port = int(url.rpartition(":")[2])
        assert await rebinding("hooks.example", port) == ["93.184.216.34"]  # what the submit would have seen
        http = GuardedHttp(Policy(ports=frozenset({port})), resolver=rebinding)
        for _ in range(2):
            found = await GuardedSender(http).send(f"http://hooks.example:{port}/", BODY, HEADERS)
            assert found == Failed(error="hooks.example: not a public address", final=True)
        assert seen == []


async def test_names_are_resolved_beside_the_loops_own_threads() -> None:
    loop = asyncio.get_running_loop()
    held, began = threading.Event(), [asyncio.Event() for _ in range(40)]

    def occupy(started: asyncio.Event) -> None:
        loop.call_soon_threadsafe(started.set)
        held.wait(BOUND_S)

    busy = [loop.run_in_executor(None, occupy, started) for started in began]
    try:
        async with asyncio.timeout(BOUND_S):
            await began[0].wait()
            assert "127.0.0.1" in await resolve_apart("localhost", 80)
            assert await resolve_apart("127.0.0.1", 80) == ["127.0.0.1"]
            for unknown in ("no-such-name.invalid", "a" * 70 + ".example"):
                with pytest.raises((OSError, UnicodeError)):
                    await resolve_apart(unknown, 80)
    finally:
        held.set()
        await asyncio.gather(*busy)


async def test_a_name_that_resolves_when_nobody_waits_any_more_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    released, asked = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        asked.set()
        released.wait(BOUND_S)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    waiting = asyncio.ensure_future(resolve_apart("slow.example", 80))
    await asyncio.to_thread(asked.wait, BOUND_S)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    released.set()
    for thread in threading.enumerate():
        if thread.name == "webhook-dns":
            await asyncio.to_thread(thread.join, BOUND_S)
    await asyncio.sleep(0)


def test_networks_are_a_setting_and_a_mistake_names_it() -> None:
    allowed = policy_of(Settings(webhook_networks="10.0.0.0/8,fd00::/8", webhook_timeout_s=7.0))
    assert [str(network) for network in allowed.private] == ["10.0.0.0/8", "fd00::/8"]
    assert (allowed.total_s, allowed.max_redirects) == (7.0, 0)
    with pytest.raises(SettingsError, match="GENFLEET_WEBHOOK_NETWORKS"):
        policy_of(Settings(webhook_networks="10.0.0.1/8"))
