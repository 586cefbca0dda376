"""The outermost layer of a gateway: who may call it from a browser, and headers that every answer has.

*Names.* A gateway that asks for no keys takes the place where a request comes from for its permission, so a web page on
another origin, or one whose name has been pointed at the loopback (DNS rebinding), must not pass for the user: the Host
must be one of the gateway's names, and what a browser says of a page (Origin, Sec-Fetch-Site) must name the gateway
itself or an origin that is listed. Programs that are no browsers say neither and are not asked. Any port of a loopback
name will do, because a forwarded one differs; a page on another port is another origin all the same.

*CORS* (Fetch standard). Preflights of listed origins are answered here.

*Room.* Beyond as many connections as one process may have, requests are refused here, so that every client gets to read
it in its own words; that the process lives, and what it counts, is said all the same.

*Headers.* Content types hold, nobody frames a page, no address leaks by Referer, what is not said to be kept is not.

What is refused here is counted like any other answer, as of no route.

It runs for every request and every event of a stream: headers are lists made once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth import keyless
from gateway.problems import RETRY_AFTER_S, Problem
from gateway.standing import standing
from shared.exposure import loopback, names
from shared.settings import Settings

Headers = list[tuple[bytes, bytes]]

#: In the state of a request's scope, if whoever serves has no room for it.
CROWDED = "genfleet_crowded"
_NEVER_CROWDED = ("/healthz", "/metrics")

#: For answers that bring none of their own: pictures and films are shown, and nothing runs.
_POLICY = (
    b"default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'"
)
_READS = ("GET", "HEAD")
_LINKS = "/media/"
_YEAR_S = 31_536_000
_PREFLIGHT_S = 600
_READABLE = (
    b"Location, Retry-After, retry-after-ms, RateLimit, RateLimit-Policy, ETag, Content-Range, Content-Disposition, "
    b"openai-poll-after-ms"
)
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
#: A list of names of headers, which a listed origin may send whatever they are.
_FIELDS = re.compile(rb"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+){0,99}")


class Exposure:
    """Wraps an application.

    Args:
        refusing: an application that answers what is raised in it, and counts that.

    Raises:
        SettingsError: a host, an origin or the public URL cannot be one.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refusing: Callable[[ASGIApp], ASGIApp]) -> None:
        self._app = app
        self._refusing = refusing
        known = names(settings)
        self._hosts = frozenset(name.encode() for name in known.hosts)
        self._origins = frozenset(origin.encode() for origin in known.origins)
        self._any_origin = known.any_origin
        public = urlsplit(settings.public_url.lower())
        #: A proxy may give the gateway's pages another name than it passes on.
        self._own = f"{public.scheme}://{public.netloc}".encode() if public.netloc else None
        self._cors = bool(known.origins) or known.any_origin
        self._checks_origin = keyless(settings)
        # Told to trust whoever can reach it, under whatever name, a gateway cannot know its names unless it is told.
        self._checks_host = self._checks_origin and (loopback(settings.host) or bool(settings.allowed_hosts))
        self._always: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
        if settings.public_url.lower().startswith("https://"):
            self._always.append((b"strict-transport-security", b"max-age=%d" % _YEAR_S))
        if self._cors:
            self._always.append((b"vary", b"Origin"))
        #: By whether the answer says itself how long it is to be kept, and what may run in it.
        self._added = {
            (kept, ruled): self._always
            + ([] if kept else [(b"cache-control", b"no-store")])
            + ([] if ruled else [(b"content-security-policy", _POLICY)])
            for kept in (False, True)
            for ruled in (False, True)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        method = str(scope["method"])
        host = origin = site = mode = asks = fields = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.lower()
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
            elif name == b"access-control-request-method":
                asks = value
            elif name == b"access-control-request-headers":
                fields = value
        listed = origin is not None and (self._any_origin or origin in self._origins)
        allowed = self._allowed(origin) if listed and origin is not None else None
        path = str(scope["path"])
        app = self._app
        # A signed link to a file is its own permission, wherever it is shown.
        linked = method in _READS and path.startswith(_LINKS)
        if CROWDED in scope.get("state", ()) and path not in _NEVER_CROWDED:
            app = self._refusing(_crowded)
        elif self._checks_host and not self._is_ours(host):
            app = self._refusing(_misdirected)
        elif (
            self._checks_origin and not listed and not linked and not self._from_here(method, host, origin, site, mode)
        ):
            app = self._refusing(_foreign)
        elif allowed is not None and asks is not None and method == "OPTIONS":
            await self._preflight(send, allowed, fields)
            return
        standing.set(None)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                given = {name for name, _ in headers}
                headers += self._added[b"cache-control" in given, b"content-security-policy" in given]
                if allowed is not None:
                    headers += allowed
                limit = standing.get()
                if limit is not None:
                    headers += limit.headers()
                message["headers"] = headers
            await send(message)

        await app(scope, receive, sent)

    def _is_ours(self, host: bytes | None) -> bool:
        if host is None:
            return False
        # An IPv6 address is in brackets, so the last colon is the port's, if it is not inside them.
        name, colon, port = host.rpartition(b":")
        return host in self._hosts or (bool(colon) and port.isdigit() and name in self._hosts)

    def _allowed(self, origin: bytes) -> Headers:
        if origin in self._origins:
            who: Headers = [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
        else:
            who = [(b"access-control-allow-origin", b"*")]
        return [*who, (b"access-control-expose-headers", _READABLE)]

    async def _preflight(self, send: Send, allowed: Headers, fields: bytes | None) -> None:
        headers = [
            *self._added[False, False],
            *allowed,
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", fields if fields and _FIELDS.fullmatch(fields) else b"Content-Type"),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _from_here(
        self, method: str, host: bytes | None, origin: bytes | None, site: bytes | None, mode: bytes | None
    ) -> bool:
        """Whether the request comes from a page of the gateway's own, or from no page."""
        if origin is not None and origin != self._own:
            _, _, authority = origin.partition(b"://")
            if not authority or authority != host:
                return False
        if site in (None, b"same-origin", b"none"):
            return True
        # A link to a page is followed from anywhere; whoever set it does not see what comes of it.
        return mode == b"navigate" and method in _READS and origin is None


async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:
    detail = "this gateway has as many connections as it may have: come back later, or to another one"
    raise Problem(503, detail, retry_after_s=RETRY_AFTER_S, headers={"Connection": "close"})


async def _misdirected(scope: Scope, receive: Receive, send: Send) -> None:
    raise Problem(421, "this gateway is not called by that name: see GENFLEET_ALLOWED_HOSTS")


async def _foreign(scope: Scope, receive: Receive, send: Send) -> None:
    raise Problem(403, "this origin may not call the gateway: see GENFLEET_CORS_ORIGINS")
