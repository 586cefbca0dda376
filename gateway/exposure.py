"""The outermost layer of a gateway: who may call it from a browser, and headers that every answer has.

*Names.* A gateway that asks for no keys takes the place where a request comes from for its permission, so a web page on
another origin, or one whose name has been pointed at the loopback (DNS rebinding), must not pass for the user: the Host
must be one of the gateway's names, and what a browser says of a page (Origin, Sec-Fetch-Site) must name the gateway
itself or an origin that is listed. Programs that are no browsers say neither and are not asked. Any port of a loopback
name will do, because a forwarded one differs; a page on another port is another origin all the same.

*CORS* (Fetch standard). Preflights of listed origins are answered here.

*Headers.* Content types hold, nobody frames a page, no address leaks by Referer, what is not said to be kept is not.

It runs for every request and every event of a stream: headers are lists made once.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth import keyless
from gateway.problems import MEDIA_TYPE, ProblemDetails
from gateway.standing import standing
from shared.exposure import loopback, names
from shared.settings import Settings

Headers = list[tuple[bytes, bytes]]

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

    Raises:
        SettingsError: a host, an origin or the public URL cannot be one.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
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
        if self._checks_host and not self._is_ours(host):
            await self._refuse(send, 421, "this gateway is not called by that name: see GENFLEET_ALLOWED_HOSTS")
            return
        # A signed link to a file is its own permission, wherever it is shown.
        linked = method in _READS and str(scope["path"]).startswith(_LINKS)
        asked = self._checks_origin and not listed and not linked
        if asked and not self._from_here(method, host, origin, site, mode):
            await self._refuse(send, 403, "this origin may not call the gateway: see GENFLEET_CORS_ORIGINS")
            return
        allowed = self._allowed(origin) if listed and origin is not None else None
        if allowed is not None and asks is not None and method == "OPTIONS":
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

        await self._app(scope, receive, sent)

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

    async def _refuse(self, send: Send, status: int, detail: str) -> None:
        title = {403: "Forbidden", 421: "Misdirected Request"}[status]
        body = msgspec.json.encode(ProblemDetails(title=title, status=status, detail=detail))
        headers = [
            *self._added[False, False],
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

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
