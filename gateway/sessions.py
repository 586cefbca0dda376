"""Browsers' sessions: a key is shown once, and from then on a cookie stands for it, which no script can read and no
other site can send.

A cookie holds which key began the session, a word for that key's secret, and an end, all signed; the gateway keeps
nothing. Every request looks whether the key is still good, so that a revocation ends its sessions at once, and so does
``DELETE /v1/session`` for one of them. A token that goes with the cookie, and that only a page of this gateway can have
read, must come with whatever changes something (a synchronizer token, as OWASP's cheat sheet on request forgery has it,
but computed from the cookie).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

import msgspec
from litestar.datastructures import Cookie
from msgspec import Struct
from msgspec.structs import replace

from gateway.auth import Caller
from gateway.keys import Keys
from shared.clock import Clock
from shared.secrets import derive
from shared.settings import Settings

#: A header, lower case as ASGI has it.
CSRF_HEADER = b"x-csrf-token"
_MAC = 32
_LONGEST = 512


class _Claims(Struct, frozen=True, array_like=True):
    session: str
    key: str
    fingerprint: str
    until: int


_claims = msgspec.json.Decoder(_Claims)


class Session(Struct, frozen=True, kw_only=True):
    """A session that is good now. ``until`` in seconds since 1970; ``csrf`` is the token that goes with it."""

    id: str
    caller: Caller
    until: int
    csrf: str


class Sessions:
    """Begins sessions and knows them again.

    Args:
        secret: of the deployment.
    """

    def __init__(self, keys: Keys, settings: Settings, clock: Clock, secret: str) -> None:
        self._keys = keys
        self._clock = clock
        self._key = derive(secret, "sessions/1")
        self._lasts_s = settings.session_s
        self._secure = settings.public_url.startswith("https://")
        #: The prefix makes browsers refuse one that another host of the domain has set (RFC 6265bis, 4.1.3).
        self.cookie_name = "__Host-genfleet" if self._secure else "genfleet_session"

    def begin(self, key: str) -> tuple[Session, Cookie] | None:
        """A session of that key's owner, and the cookie; None if the key is not good."""
        caller = self._keys.verify(key)
        if caller is None:
            return None
        until = int(self._clock.wall() + self._lasts_s)
        claims = _Claims(secrets.token_hex(8), *self._keys.fingerprint(key), until)
        body = msgspec.json.encode(claims)
        value = base64.urlsafe_b64encode(self._mac(b"cookie", body) + body).decode().rstrip("=")
        return self._session(claims, caller, value), self._cookie(value, int(self._lasts_s))

    def no_cookie(self) -> Cookie:
        """What makes the browser forget."""
        return self._cookie("", 0)

    def find(self, value: str) -> Session | None:
        """The session of that cookie; None if it is none of ours, or over."""
        try:
            raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)) if len(value) <= _LONGEST else b""
        except ValueError:
            return None
        mac, body = raw[:_MAC], raw[_MAC:]
        if not hmac.compare_digest(mac, self._mac(b"cookie", body)):
            return None
        claims = _claims.decode(body)
        if self._clock.wall() >= claims.until:
            return None
        caller = self._keys.of_session(claims.key, claims.fingerprint, claims.session)
        return None if caller is None else self._session(claims, caller, value)

    def _session(self, claims: _Claims, caller: Caller, value: str) -> Session:
        csrf = self._mac(b"csrf", value.encode())[:16].hex()
        caller = replace(caller, session=claims.session, until=claims.until)
        return Session(id=claims.session, caller=caller, until=claims.until, csrf=csrf)

    def _mac(self, use: bytes, data: bytes) -> bytes:
        return hmac.digest(self._key, use + b"\0" + data, hashlib.sha256)

    def _cookie(self, value: str, lasts_s: int) -> Cookie:
        return Cookie(
            key=self.cookie_name,
            value=value,
            path="/",
            max_age=lasts_s,
            httponly=True,
            samesite="strict",
            secure=self._secure,
        )
