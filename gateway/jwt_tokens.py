"""Tokens of an identity provider (JWT, RFC 7519), verified with the public keys that it publishes (JWKS, RFC 7517).

Taken is what RFC 8725 tells to take: signatures of public keys alone (never ``none``, never a shared secret, whatever
the token's header says), of the one issuer, for this audience, with an end that has not passed.

The keys are fetched beside the requests: at the start, every ten minutes, and when a token names one that is not known,
which is how a provider's change of keys shows; for that the request waits, and for no other. However many unknown ones
come, the provider is asked no more often than every ten seconds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import warnings

import msgspec
from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import KeySet
from msgspec import Struct

from gateway.auth import Caller, Role, may
from gateway.jwks import Fetch, JwksUnreadable, source, usable
from gateway.names import TENANT
from gateway.problems import Problem
from shared.clock import Clock
from shared.errors import SettingsError
from shared.messages import DEFAULT_TENANT
from shared.settings import Settings
from shared.telemetry import log

_LOG = log(__name__)

_ALGORITHMS = ("RS256", "ES256", "EdDSA", "Ed25519")
#: By how much the provider's clock may differ from ours.
LEEWAY_S = 60
_LONGEST = 8192
#: How often the keys are read again, and how often at most because a token named one that is not known.
_FRESH_S = 600.0
_AGAIN_S = 10.0
#: A token is verified once, and then known by its digest for so long, unless the provider's keys change.
_REMEMBERED_S = 60.0
_REMEMBERED = 4096
_BY = 128

Claims = dict[str, object]


class _Header(Struct, frozen=True):
    alg: str
    kid: str = ""


_header = msgspec.json.Decoder(_Header)


class Tokens:
    """Verifies tokens. ``keep_fresh`` must run."""

    def __init__(self, settings: Settings, clock: Clock, fetch: Fetch) -> None:
        self._clock = clock
        self._fetch = fetch
        self._tenant_claim = settings.jwt_tenant_claim
        self._role_claim = settings.jwt_role_claim
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._keys: KeySet | None = None
        self._kids: frozenset[str] = frozenset()
        self._text = b""
        self._asked_at: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._remembered: dict[bytes, tuple[Caller, float]] = {}

    async def verify(self, token: str) -> Caller | None:
        """Whose token this is; None if it is not to be believed.

        Raises:
            Problem: 503; the provider's keys have never been read.
        """
        if len(token) > _LONGEST:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        caller, until = self._remembered.get(digest, (None, 0.0))
        if caller is not None and self._clock.wall() < until:
            return caller
        kid = _kid(token)
        if kid is None:
            return None
        if self._keys is None or (kid and kid not in self._kids):
            await self._ask_again()
        if self._keys is None:
            raise Problem(503, "the identity provider's keys cannot be read", retry_after_s=int(_AGAIN_S))
        claims = self._believed(token, self._keys)
        return None if claims is None else self._remember(digest, claims)

    async def keep_fresh(self) -> None:
        """Read the keys, and again before they are old; until cancelled."""
        while True:
            await self._ask()
            await self._clock.sleep(_FRESH_S if self._keys is not None else _AGAIN_S)

    # --- the provider's keys -----------------------------------------------------------------------------------------

    async def _ask_again(self) -> None:
        """Read the keys because a token needs one that is not here, unless that was done a moment ago."""
        lately = self._asked_at is not None and self._clock.monotonic() - self._asked_at < _AGAIN_S
        if self._asking is not None or not lately:
            await self._ask()

    async def _ask(self) -> None:
        if self._asking is None:
            self._asked_at = self._clock.monotonic()
            self._asking = asyncio.create_task(self._read())
            self._asking.add_done_callback(self._asked)
        await asyncio.shield(self._asking)

    def _asked(self, _: asyncio.Task[None]) -> None:
        self._asking = None

    async def _read(self) -> None:
        try:
            text = await self._fetch()
            if text == self._text:
                return
            keys = usable(text)
        except JwksUnreadable as error:
            _LOG.error("the identity provider's keys cannot be read; those known before count on", error=str(error))
            return
        except Exception:
            # Whatever a provider sends, the next reading must take place.
            _LOG.exception("reading the identity provider's keys failed")
            return
        self._keys, self._text = keys, text
        self._kids = frozenset(str(key.kid) for key in keys)
        self._remembered.clear()
        _LOG.info("the identity provider's keys", kids=sorted(self._kids))

    # --- one token ---------------------------------------------------------------------------------------------------

    def _believed(self, token: str, keys: KeySet) -> Claims | None:
        """The claims, if the signature, the issuer, the audience and the times are right."""
        registry = jwt.JWTClaimsRegistry(
            now=int(self._clock.wall()),
            leeway=LEEWAY_S,
            iss={"essential": True, "value": self._issuer},
            aud={"essential": True, "value": self._audience},
            sub={"essential": True},
            exp={"essential": True},
        )
        try:
            with warnings.catch_warnings():
                # "EdDSA" names a family where "Ed25519" names one (RFC 9864), and is what providers write.
                warnings.simplefilter("ignore", SecurityWarning)
                claims = jwt.decode(token, keys, algorithms=_ALGORITHMS).claims
            registry.validate(claims)
        except Exception as error:
            # Whatever the library makes of what a stranger wrote, which is more than it says (a "crit" of numbers is a
            # TypeError). The class alone: the message may quote the token.
            _LOG.info("a token was not believed", why=type(error).__name__)
            return None
        return claims

    def _remember(self, digest: bytes, claims: Claims) -> Caller | None:
        tenant = _claim(claims, self._tenant_claim) if self._tenant_claim else DEFAULT_TENANT
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            _LOG.info("a token names no tenant", claim=self._tenant_claim)
            return None
        role = highest(_claim(claims, self._role_claim)) if self._role_claim else Role.USER
        printable = "".join(mark for mark in str(claims["sub"]) if mark.isprintable())
        ends = claims["exp"]
        assert isinstance(ends, int | float)  # the registry has seen to it
        until = ends + LEEWAY_S
        caller = Caller(tenant=tenant, role=role, by=f"jwt:{printable[:_BY]}", until=until)
        if len(self._remembered) >= _REMEMBERED:
            self._remembered.clear()
        self._remembered[digest] = caller, min(until, self._clock.wall() + _REMEMBERED_S)
        return caller


def highest(claim: object) -> Role:
    """The highest role that a claim names, which is a word, words with spaces between them, or a list; user if it names
    none of ours."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    best = Role.USER
    for role in Role:
        if role in words and may(Caller(tenant="", role=role, by=""), best):
            best = role
    return best


def tokens_of(settings: Settings, clock: Clock) -> Tokens | None:
    """What verifies tokens, if the settings want them.

    Raises:
        SettingsError: they want them and do not say whose, for whom, or where the keys are so that it can be trusted.
    """
    if not settings.jwt_jwks_url:
        return None
    for name in ("jwt_issuer", "jwt_audience"):
        if not getattr(settings, name):
            raise SettingsError(
                f"GENFLEET_{name.upper()} must be set with GENFLEET_JWT_JWKS_URL: else tokens made for others, or by "
                "others, would be taken"
            )
    return Tokens(settings, clock, source(settings.jwt_jwks_url))


def _kid(token: str) -> str | None:
    """The id of the key that the token says it is signed with; empty if it names none, None if it cannot be taken."""
    head = token.partition(".")[0]
    try:
        header = _header.decode(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    return header.kid if header.alg in _ALGORITHMS else None


def _claim(claims: Claims, path: str) -> object:
    """A claim by its name, or else by its path with dots."""
    if path in claims:
        return claims[path]
    value: object = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
