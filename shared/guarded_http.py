"""HTTP to addresses that users name: inputs by URL, and webhooks. Nothing that a user writes reaches a private address.

The guard sits where the connection is made: a name is resolved once, every address that it resolves to must be public,
and the connection goes to one of those very addresses; so neither a redirect, nor a name that changes its address
between the check and the use, nor an odd spelling of 127.0.0.1 gets past it. No proxy of the environment is used.

Sources of what is not public: the IANA special-purpose registries (RFC 6890), as Python's ``ipaddress`` has them, and
the IPv6 forms that carry an IPv4 address (RFC 4291, 6052, 3056, 4380).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import IO
from urllib.parse import urljoin, urlsplit

import httpcore
from msgspec import Struct
from typing_extensions import override

from shared.errors import GenfleetError, SettingsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: (host, port) → the addresses of that name.
Resolve = Callable[[str, int], Awaitable[list[str]]]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: What ``ipaddress`` of Python 3.11 takes for public and is not: former relays of 6to4 (RFC 7526), documentation
#: (RFC 9637), and the address at which Azure's hosts answer their guests, credentials included.
_NOT_PUBLIC = tuple(ipaddress.ip_network(text) for text in ("192.88.99.0/24", "3fff::/20", "168.63.129.16/32"))
_MAX_URL = 2048


class Refused(GenfleetError):
    """The URL is not one that we go to, or what lies there is not what we take. Trying again will not help."""


class Unreachable(GenfleetError):
    """The server could not be reached, or broke off, or was too slow."""


class Policy(Struct, frozen=True, kw_only=True):
    """What a request may do.

    Attributes:
        private: networks that may be reached although they are not public.
        ports: on public addresses; on those of ``private`` every port is allowed.
        max_redirects: each is checked like the first URL.
        connect_s: for the connection and for each wait on the server.
        total_s: for the whole of it.
        max_bytes: of the body.
    """

    private: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset({80, 443})
    max_redirects: int = 5
    connect_s: float = 10.0
    total_s: float = 60.0
    max_bytes: int = 64 * 1024 * 1024


class Fetched(Struct, frozen=True, kw_only=True):
    """A body that was written down."""

    size: int
    sha256: str


class Answered(Struct, frozen=True, kw_only=True):
    """What a server said, but for the body. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]


def networks(text: str, setting: str = "private_networks") -> tuple[Network, ...]:
    """Networks from a comma-separated list, e.g. ``10.0.0.0/8, fd00::/8``.

    Raises:
        SettingsError: one of them is none.
    """
    try:
        return tuple(ipaddress.ip_network(word.strip()) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise SettingsError(f"GENFLEET_{setting.upper()}: {error}") from error


def is_public(address: Address) -> bool:
    """Whether that address is one of the public Internet's, also behind the IPv6 form that carries it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return is_public(inner)
        if address.is_site_local:
            return False
    if any(address.version == network.version and address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver has for a name."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found))


class _Guard(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    def __init__(self, policy: Policy, resolver: Resolve, inner: httpcore.AsyncNetworkBackend) -> None:
        self._policy, self._resolve, self._inner = policy, resolver, inner

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except (OSError, UnicodeError, TimeoutError) as error:
            raise Unreachable(f"{host}: no address") from error
        for address in addresses:
            _check(self._policy, host, port, ipaddress.ip_address(address.partition("%")[0]))
        failure: Exception = Unreachable(f"{host}: no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    @override
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("not a network address")

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class GuardedHttp:
    """An HTTP client for URLs that users give. No connection is kept: every request is checked anew.

    Args:
        policy: of all requests.
        resolver: instead of the system's.
        backend: what makes the connections once they are allowed.
    """

    def __init__(
        self, policy: Policy, *, resolver: Resolve = resolve, backend: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._policy = policy
        self._guard = _Guard(policy, resolver, backend or httpcore.AnyIOBackend())

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # takes some milliseconds

    async def fetch(self, url: str, file: IO[bytes]) -> Fetched:
        """Write what lies at the URL into ``file``.

        Raises:
            Refused: the URL, a redirect, or the answer (not 200, compressed, too long).
            Unreachable: the server.
        """
        policy = self._policy
        try:
            async with asyncio.timeout(policy.total_s):
                for _ in range(policy.max_redirects + 1):
                    async with self._request("GET", url, {}, b"") as answer:
                        headers = _headers(answer)
                        if answer.status in _REDIRECTS:
                            url = urljoin(url, headers.get("location", ""))
                            continue
                        return await self._body(answer, headers, file)
        except TimeoutError as error:
            raise Unreachable(f"took longer than {policy.total_s:g} s") from error
        raise Refused(f"more than {policy.max_redirects} redirects")

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send the body; the answer's status. As ``send``."""
        return (await self.send(url, body, headers)).status

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> Answered:
        """Post the body. Redirects are not followed, the answer's body is not read.

        Raises:
            Refused: the URL.
            Unreachable: the server.
        """
        try:
            async with asyncio.timeout(self._policy.total_s), self._request("POST", url, headers, body) as answer:
                return Answered(status=answer.status, headers=_headers(answer))
        except TimeoutError as error:
            raise Unreachable(f"took longer than {self._policy.total_s:g} s") from error

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> AsyncIterator[httpcore.Response]:
        target = checked(url)
        sent: dict[bytes | str, bytes | str] = {"Host": target.netloc, "User-Agent": "genfleet"}
        sent["Accept-Encoding"] = "identity"
        sent.update(headers.items())
        if body:
            sent["Content-Length"] = str(len(body))
        waits = dict.fromkeys(("connect", "read", "write", "pool"), self._policy.connect_s)
        try:
            async with (
                httpcore.AsyncConnectionPool(
                    ssl_context=self._tls, max_keepalive_connections=0, network_backend=self._guard
                ) as pool,
                pool.stream(method, url, headers=sent, content=body or None, extensions={"timeout": waits}) as answer,
            ):
                yield answer
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            ssl.SSLError,
        ) as error:
            raise Unreachable(f"{target.hostname}: {str(error) or type(error).__name__}") from error

    async def _body(self, answer: httpcore.Response, headers: dict[str, str], file: IO[bytes]) -> Fetched:
        limit = self._policy.max_bytes
        if answer.status != 200:
            raise (Unreachable if answer.status >= 500 else Refused)(f"the server answered {answer.status}")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused("the server compressed its answer although it was asked not to")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > limit:
            raise Refused(f"longer than {limit} bytes")
        digest, size = hashlib.sha256(), 0
        async for chunk in answer.aiter_stream():
            size += len(chunk)
            if size > limit:
                raise Refused(f"longer than {limit} bytes")
            digest.update(chunk)
            file.write(chunk)
        return Fetched(size=size, sha256=digest.hexdigest())


class Target(Struct, frozen=True):
    """A URL that may be tried: its host, and ``host[:port]`` as it was written."""

    hostname: str
    netloc: str


def checked(url: str) -> Target:
    """The URL's host, after all checks that need no network. Pure.

    Raises:
        Refused: not an absolute http or https URL, with a user name, or too long.
    """
    if len(url) > _MAX_URL or not url.isascii() or any(ord(letter) <= 32 or letter in '\\"<>^`{|}' for letter in url):
        raise Refused("not a URL: too long, or with characters that must be escaped")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Refused(f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise Refused("only http and https URLs are fetched")
    if not host:
        raise Refused("the URL names no host")
    if parts.username is not None or parts.password is not None:
        raise Refused("a URL with a user name or password is not fetched")
    return Target(host, parts.netloc)


def allowed(url: str, policy: Policy) -> Target:
    """As ``checked``, and refuses what is wrong whatever its name resolves to: a private address that is written as
    one, however oddly, the machine's own name, or a port that no address may be reached on. Pure.

    Raises:
        Refused: it is not gone to.
    """
    target = checked(url)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    name = target.hostname.rstrip(".").lower()
    address = _literal(name)
    if address is None and (name == "localhost" or name.endswith(".localhost")):
        address = ipaddress.IPv4Address("127.0.0.1")
    if address is not None:
        _check(policy, target.hostname, port, address)
    elif port not in policy.ports and not policy.private:
        raise Refused(f"{target.hostname}: port {port} is not allowed")
    return target


def _literal(host: str) -> Address | None:
    """The address that a host is in itself; ``127.1``, ``0x7f.1`` and ``2130706433`` are 127.0.0.1 to resolvers."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None


def _check(policy: Policy, host: str, port: int, address: Address) -> None:
    inside = any(address.version == network.version and address in network for network in policy.private)
    if inside:
        return
    if not is_public(address):
        raise Refused(f"{host}: not a public address")
    if port not in policy.ports:
        raise Refused(f"{host}: port {port} is not allowed")


def _headers(answer: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
