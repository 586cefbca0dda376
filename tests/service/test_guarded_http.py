"""Rows 21 and 23 of the faults: no URL that a user gives reaches a private address, whatever it looks like."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import ipaddress
from collections.abc import Iterable
from contextlib import suppress

import httpcore
import pytest
from typing_extensions import override

from shared.errors import SettingsError
from shared.guarded_http import GuardedHttp, Policy, Refused, Unreachable, checked, is_public, networks, resolve
from tests.support.http_server import said, server

HOME = ipaddress.ip_network("127.0.0.1/32")
BOUND_S = 60.0


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1",
        "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1", "2001:0:7f00:1::1", "64:ff9b:1::7f00:1", "::127.0.0.1",
        "::ffff:0:127.0.0.1", "3fff::1", "5f00::1", "100::1", "2002:a9fe:a9fe::1", "192.88.99.1", "192.0.0.1",
        "168.63.129.16", "100.100.100.200", "169.254.170.2", "203.0.113.1", "::ffff:169.254.169.254",
    ],
)  # fmt: skip
def test_what_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_what_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a", "file:///etc/passwd", "gopher://example.org", "//example.org/a", "example.org", "",
        "http://", "http:///a", "http://user@example.org/", "http://user:word@example.org/", "http://a b/",
        "http://example.org\\@evil/", "http://exa\nmple.org/", "http://[::1", "http://example.org:99999/",
        "http://ex\u00e4mple.org/", "http://example.org/" + "a" * 3000,
    ],
)  # fmt: skip
def test_a_url_that_is_refused_before_any_network(url: str) -> None:
    with pytest.raises(Refused):
        checked(url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
async def test_no_spelling_of_loopback_is_reached(host: str) -> None:
    async with asyncio.timeout(BOUND_S), server(lambda _: said(b"secret")) as (url, seen):
        port = url.rpartition(":")[2]
        http = GuardedHttp(Policy(ports=frozenset({int(port)})))
        with pytest.raises((Refused, Unreachable)):
            await http.fetch(f"http://{host}:{port}/", io.BytesIO())
        with pytest.raises((Refused, Unreachable)):
            await http.post(f"http://{host}:{port}/", b"{}", {})
        assert seen == []


async def test_what_is_fetched_is_written_and_hashed() -> None:
    async with asyncio.timeout(BOUND_S), server(lambda _: said(b"picture")) as (url, seen):
        file = io.BytesIO()
        fetched = await GuardedHttp(Policy(private=(HOME,))).fetch(f"{url}/a?b=c", file)
        assert (file.getvalue(), fetched.size) == (b"picture", 7)
        assert fetched.sha256 == hashlib.sha256(b"picture").hexdigest()
        assert seen == ["GET /a?b=c HTTP/1.1"]


class Recorder(httpcore.AsyncNetworkBackend):
    """Connects to nothing, and says to what it was asked to."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.asked.append(host)
        raise httpcore.ConnectError("nobody there")


async def test_a_name_that_changes_its_address_is_connected_where_it_was_checked() -> None:
    answers = iter((["93.184.216.34"], ["127.0.0.1"]))
    asked = 0

    async def changing(host: str, port: int) -> list[str]:
        nonlocal asked
        asked += 1
        return next(answers)

    recorder = Recorder()
    http = GuardedHttp(Policy(), resolver=changing, backend=recorder)
    with pytest.raises(Unreachable):
        await http.fetch("http://rebind.example/", io.BytesIO())
    assert (recorder.asked, asked) == (["93.184.216.34"], 1)
    with pytest.raises(Refused, match="not a public address"):
        await http.fetch("http://rebind.example/", io.BytesIO())
    assert recorder.asked == ["93.184.216.34"]


async def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    async def both(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    recorder = Recorder()
    with pytest.raises(Refused):
        await GuardedHttp(Policy(), resolver=both, backend=recorder).fetch("http://two.example/", io.BytesIO())
    assert recorder.asked == []


async def test_an_odd_port_is_refused() -> None:
    async def public(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    recorder = Recorder()
    with pytest.raises(Refused, match="port 22"):
        await GuardedHttp(Policy(), resolver=public, backend=recorder).fetch("http://a.example:22/", io.BytesIO())
    assert recorder.asked == []


async def test_a_redirect_to_a_private_address_is_refused_and_never_arrives() -> None:
    async with asyncio.timeout(BOUND_S), server(lambda _: said(b"secret")) as (inside, reached):
        target = inside.replace("127.0.0.1", "127.0.0.2")

        def answer(_: str) -> list[bytes]:
            return said(b"", "302 Found", f"Location: {target}/")

        async with server(answer) as (url, seen):
            with pytest.raises(Refused, match="not a public address"):
                await GuardedHttp(Policy(private=(HOME,))).fetch(url, io.BytesIO())
            assert (len(seen), reached) == (1, [])


async def test_a_redirect_to_another_scheme_is_refused() -> None:
    def answer(_: str) -> list[bytes]:
        return said(b"", "302 Found", "Location: file:///etc/passwd")

    async with asyncio.timeout(BOUND_S), server(answer) as (url, _):
        with pytest.raises(Refused, match="only http"):
            await GuardedHttp(Policy(private=(HOME,))).fetch(url, io.BytesIO())


async def test_redirects_are_followed_as_far_as_allowed() -> None:
    def answer(head: str) -> list[bytes]:
        number = int(head.split("/")[1].split(" ")[0] or 0)
        return said(b"here") if number == 3 else said(b"", "307 Temporary Redirect", f"Location: /{number + 1}")

    async with asyncio.timeout(BOUND_S), server(answer) as (url, seen):
        file = io.BytesIO()
        await GuardedHttp(Policy(private=(HOME,), max_redirects=3)).fetch(f"{url}/0", file)
        assert (file.getvalue(), len(seen)) == (b"here", 4)
        with pytest.raises(Refused, match="more than 2 redirects"):
            await GuardedHttp(Policy(private=(HOME,), max_redirects=2)).fetch(f"{url}/0", io.BytesIO())


async def test_a_body_that_never_ends_is_cut_at_the_limit() -> None:
    def answer(_: str) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        while True:
            yield b"x" * 65536

    async with asyncio.timeout(BOUND_S), server(answer) as (url, _):
        file = io.BytesIO()
        with pytest.raises(Refused, match="longer than 100000 bytes"):
            await GuardedHttp(Policy(private=(HOME,), max_bytes=100_000)).fetch(url, file)
        assert len(file.getvalue()) <= 100_000


async def test_a_body_that_drips_is_given_up_in_time() -> None:
    """Each byte comes within the wait for one, all of them never."""
    ended = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        gone = asyncio.ensure_future(reader.read())
        with suppress(ConnectionError):
            while not gone.done():
                writer.write(b"x")
                await writer.drain()
                await asyncio.wait((gone,), timeout=0.02)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        await asyncio.gather(gone, return_exceptions=True)
        ended.set()

    dripping = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with asyncio.timeout(BOUND_S), dripping:
        url = f"http://127.0.0.1:{dripping.sockets[0].getsockname()[1]}/"
        with pytest.raises(Unreachable, match=r"longer than 0\.3 s"):
            await GuardedHttp(Policy(private=(HOME,), connect_s=BOUND_S, total_s=0.3)).fetch(url, io.BytesIO())
        await ended.wait()


async def test_thirty_redirects_are_too_many() -> None:
    def answer(head: str) -> list[bytes]:
        number = int(head.split("/")[1].split(" ")[0] or 0)
        return said(b"end") if number == 30 else said(b"", "302 Found", f"Location: /{number + 1}")

    async with asyncio.timeout(BOUND_S), server(answer) as (url, seen):
        with pytest.raises(Refused, match="more than 5 redirects"):
            await GuardedHttp(Policy(private=(HOME,))).fetch(f"{url}/0", io.BytesIO())
        assert len(seen) == 6


@pytest.mark.parametrize(
    "location",
    ["http://user:word@127.0.0.1/", "//127.0.0.2/", "http://[::1]/", "gopher://127.0.0.1/", "data:text/plain,x",
     "\\\\x", "http://2130706434/", "http://127.0.0.1:22222222/"],
)  # fmt: skip
async def test_a_redirect_is_judged_as_a_url_that_was_given(location: str) -> None:
    def answer(_: str) -> list[bytes]:
        return said(b"", "302 Found", f"Location: {location}")

    async with asyncio.timeout(BOUND_S), server(answer) as (url, seen):
        with pytest.raises((Refused, Unreachable)):
            await GuardedHttp(Policy(private=(HOME,))).fetch(url, io.BytesIO())
        assert len(seen) == 1


async def test_a_declared_length_beyond_the_limit_is_refused_unread() -> None:
    async with asyncio.timeout(BOUND_S), server(lambda _: said(b"x" * 1000)) as (url, _):
        file = io.BytesIO()
        with pytest.raises(Refused, match="longer than 999 bytes"):
            await GuardedHttp(Policy(private=(HOME,), max_bytes=999)).fetch(url, file)
        assert file.getvalue() == b""


async def test_a_compressed_answer_is_refused() -> None:
    async with asyncio.timeout(BOUND_S), server(lambda _: said(b"x", "200 OK", "Content-Encoding: gzip")) as (url, _):
        with pytest.raises(Refused, match="compressed"):
            await GuardedHttp(Policy(private=(HOME,))).fetch(url, io.BytesIO())


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate, gzip", "identity, gzip"])
async def test_no_compressed_bomb_is_unpacked(coding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    async with (
        asyncio.timeout(BOUND_S),
        server(lambda _: said(bomb, "200 OK", f"Content-Encoding: {coding}")) as (
            url,
            _,
        ),
    ):
        file = io.BytesIO()
        with pytest.raises(Refused, match="compressed"):
            await GuardedHttp(Policy(private=(HOME,))).fetch(url, file)
        assert file.getvalue() == b""


@pytest.mark.parametrize(("status", "kind"), [("404 Not Found", Refused), ("503 Busy", Unreachable)])
async def test_another_answer_than_200(status: str, kind: type[Exception]) -> None:
    async with asyncio.timeout(BOUND_S), server(lambda _: said(b"", status)) as (url, _):
        with pytest.raises(kind, match=status[:3]):
            await GuardedHttp(Policy(private=(HOME,))).fetch(url, io.BytesIO())


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async with asyncio.timeout(BOUND_S), server(None) as (url, _):
        for policy in (Policy(private=(HOME,), total_s=0.05), Policy(private=(HOME,), connect_s=0.05)):
            with pytest.raises(Unreachable):
                await GuardedHttp(policy).fetch(url, io.BytesIO())


async def test_a_post_gives_the_status_and_follows_nothing() -> None:
    def answer(head: str) -> list[bytes]:
        return said(b"", "302 Found", "Location: /elsewhere")

    async with asyncio.timeout(BOUND_S), server(answer) as (url, seen):
        assert await GuardedHttp(Policy(private=(HOME,))).post(f"{url}/hook", b"{}", {"X-Id": "1"}) == 302
        assert seen == ["POST /hook HTTP/1.1"]


async def test_the_system_resolver_knows_loopback() -> None:
    assert "127.0.0.1" in await resolve("127.0.0.1", 80)


def test_networks_of_a_setting() -> None:
    assert networks(" 10.0.0.0/8 ,fd00::/8,") == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    with pytest.raises(SettingsError, match="PRIVATE_NETWORKS"):
        networks("10.0.0.1/8")
