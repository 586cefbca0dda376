"""One try over the network, through the guard; and the check of an address before a job is taken."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Protocol

from gateway.problems import FieldError, Problem, invalid
from gateway.webhooks.schedule import Failed, Verdict, verdict
from shared import guarded_http
from shared.guarded_http import GuardedHttp, Policy, Refused, Unreachable
from shared.settings import Settings

_FIELD = "webhook_url"
_LONGEST_ERROR = 200
_FULL_RETRY_S = 60


class Sender(Protocol):
    """Makes one try."""

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> Verdict:
        """Post the body; what came of it. Bounded in time."""
        ...


def policy_of(settings: Settings) -> Policy:
    """What webhooks may reach.

    Raises:
        SettingsError: ``webhook_networks`` is not a list of networks.
    """
    return Policy(
        private=guarded_http.networks(settings.webhook_networks, "webhook_networks"),
        max_redirects=0,
        connect_s=settings.webhook_timeout_s,
        total_s=settings.webhook_timeout_s,
    )


async def resolve_apart(host: str, port: int) -> list[str]:
    """As ``guarded_http.resolve``, each name in a thread of its own: the loop's few threads have other work, and a name
    whose servers do not answer holds one for half a minute, whoever waits for it no longer."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def tell(addresses: list[str], error: OSError | UnicodeError | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def ask() -> None:
        addresses: list[str] = []
        failure: OSError | UnicodeError | None = None
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            addresses = list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in answers))
        except (OSError, UnicodeError) as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, addresses, failure)

    threading.Thread(target=ask, name="webhook-dns", daemon=True).start()
    return await found


class GuardedSender:
    """Sends to no address that the policy does not allow, whatever the receiver's name resolves to."""

    def __init__(self, http: GuardedHttp) -> None:
        self._http = http

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> Verdict:
        try:
            answer = await self._http.send(url, body, headers)
        except Refused as error:
            return Failed(error=str(error)[:_LONGEST_ERROR], final=True)
        except Unreachable as error:
            return Failed(error=str(error)[:_LONGEST_ERROR], down=True)
        return verdict(answer.status, answer.headers.get("retry-after"))


class Addresses:
    """Says which addresses jobs may name.

    Attributes:
        full: no more deliveries are taken: too many are owed already.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.full = False

    def check(self, url: str) -> None:
        """Refuse what can be refused without asking the network; the rest is refused when the connection is made.

        Raises:
            Problem: 422, naming the field, or 429.
        """
        try:
            guarded_http.allowed(url, self._policy)
        except Refused as error:
            raise invalid(_FIELD, str(error)) from error
        if self.full:
            field = FieldError(field=_FIELD, message="too many webhooks wait for their receivers")
            raise Problem(429, f"{_FIELD}: {field.message}", errors=(field,), retry_after_s=_FULL_RETRY_S)
