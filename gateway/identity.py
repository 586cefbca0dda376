"""Around every route: who asks, said once, from a key, a token or a session's cookie.

What a request says is looked for in this order: ``Authorization: Bearer``, ``X-API-Key``, the cookie. The first that is
there counts: a bad key is not made good by a cookie. A route is answered without any of it only if it says so itself
(``auth.OPEN``).
"""

from __future__ import annotations

from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from gateway.auth import ANYBODY, Caller, identify, is_open, unauthorized
from gateway.jwt_tokens import Tokens
from gateway.keys import Keys
from gateway.problems import Problem
from gateway.sessions import CSRF_HEADER, Session, Sessions
from shared.secrets import equal

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SESSION = "genfleet_session"


class Given(Struct, frozen=True):
    """What a request says of who asks: one of the two."""

    key: str = ""
    cookie: str = ""


def given(scope: Scope, cookie_name: bytes) -> Given | None:
    """What the request says; None if it says nothing. Other schemes than ``Bearer`` are others' business."""
    key = cookie = ""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, text = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return Given(key=text.strip().decode("latin-1"))
        elif name == b"x-api-key":
            key = value.strip().decode("latin-1")
        elif name == b"cookie":
            cookie = _cookie(value, cookie_name) or cookie
    return Given(key, cookie) if key or cookie else None


def _cookie(header: bytes, name: bytes) -> str:
    for part in header.split(b";"):
        found, _, value = part.strip().partition(b"=")
        if found == name:
            return value.decode("latin-1")
    return ""


def session_of(scope: Scope) -> Session | None:
    """The session by which the request says who asks, if it does so by one."""
    session: Session | None = scope["state"].get(_SESSION)
    return session


class Identity:
    """Knows callers.

    Args:
        needed: requests must say who asks; without it everybody is ``ANYBODY``, whatever they say.
        tokens: takes an identity provider's tokens; None: there is none.
    """

    def __init__(self, keys: Keys, sessions: Sessions, tokens: Tokens | None, *, needed: bool) -> None:
        self._keys = keys
        self._sessions = sessions
        self._tokens = tokens
        self.needed = needed
        self._cookie_name = sessions.cookie_name.encode()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Lets in who may come in."""

        async def anybody(scope: Scope, receive: Receive, send: Send) -> None:
            identify(scope, ANYBODY)
            await app(scope, receive, send)

        async def known(scope: Scope, receive: Receive, send: Send) -> None:
            said = given(scope, self._cookie_name)
            try:
                caller = None if said is None else await self._caller(scope, said)
                if caller is None:
                    raise self.refusal(tried=said is not None)
                identify(scope, caller)
            except Problem:
                if not is_open(scope):
                    raise
            await app(scope, receive, send)

        return known if self.needed else anybody

    async def _caller(self, scope: Scope, said: Given) -> Caller | None:
        if not said.key:
            return self._of_cookie(scope, said.cookie)
        caller = self._keys.verify(said.key)
        if caller is None and self._tokens is not None and said.key.count(".") == 2:
            caller = await self._tokens.verify(said.key)
        return caller

    def _of_cookie(self, scope: Scope, cookie: str) -> Caller | None:
        session = self._sessions.find(cookie)
        if session is None:
            return None
        if scope.get("method") not in _SAFE:
            token = next((value for name, value in scope["headers"] if name == CSRF_HEADER), b"")
            if not equal(token, session.csrf):
                raise Problem(403, "with a session's cookie this needs the header X-CSRF-Token")
        scope.setdefault("state", {})[_SESSION] = session
        return session.caller

    def refusal(self, *, tried: bool) -> Problem:
        """What is answered to somebody who is nobody; ``tried``: to be somebody."""
        if tried and not self._keys.read:
            return Problem(503, "still reading the keys; whose this is will be known soon", retry_after_s=1)
        return unauthorized(given=tried)
