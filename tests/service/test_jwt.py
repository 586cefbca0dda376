"""Tokens of an identity provider: which are believed, and as whom (RFC 7519, 8725)."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable

import pytest
from joserfc import jws, jwt
from joserfc.jwk import RSAKey
from msgspec.structs import replace

from gateway.auth import Caller, Role
from gateway.jwt_tokens import LEEWAY_S, Tokens, highest
from tests.support.clock import FakeClock
from tests.support.jwt_provider import EC, ED, RSA, SETTINGS, Provider, b64, claims, published, signed


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider() -> Provider:
    return Provider(published(RSA, EC, ED))


@pytest.fixture
def tokens(clock: FakeClock, provider: Provider) -> Tokens:
    return Tokens(SETTINGS, clock, provider.fetch)


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA", "Ed25519"])
async def test_a_good_token_is_believed(tokens: Tokens, clock: FakeClock, alg: str) -> None:
    caller = await tokens.verify(signed(claims(clock), alg))
    until = clock.wall() + 300 + LEEWAY_S
    assert caller == Caller(tenant="studio", role=Role.USER, by="jwt:somebody", until=until)


def signed_text(text: bytes, key: RSAKey) -> str:
    """A good signature of what is no claims."""
    return jws.serialize_compact({"alg": "RS256", "kid": key.kid or ""}, text, key)


BAD: dict[str, Callable[[FakeClock], dict[str, object]]] = {
    "expired": lambda clock: claims(clock, exp=int(clock.wall()) - LEEWAY_S - 1),
    "without an end": lambda clock: claims(clock, exp=None),
    "with an end that is none": lambda clock: claims(clock, exp="tomorrow"),
    "not yet": lambda clock: claims(clock, nbf=int(clock.wall()) + LEEWAY_S + 1),
    "of another issuer": lambda clock: claims(clock, iss="https://login.example"),
    "of nobody": lambda clock: claims(clock, iss=None),
    "for another": lambda clock: claims(clock, aud="another"),
    "for others": lambda clock: claims(clock, aud=["another", "genfleet2"]),
    "for nobody": lambda clock: claims(clock, aud=None),
    "about nobody": lambda clock: claims(clock, sub=None),
    "without a tenant": lambda clock: claims(clock, org=None),
    "with a tenant that is none": lambda clock: claims(clock, org="a.b"),
    "with several tenants": lambda clock: claims(clock, org=["studio", "acme"]),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_token_with_wrong_claims_is_not(tokens: Tokens, clock: FakeClock, what: str) -> None:
    assert await tokens.verify(signed(BAD[what](clock))) is None


async def test_a_little_late_is_in_time(tokens: Tokens, clock: FakeClock) -> None:
    now = int(clock.wall())
    assert await tokens.verify(signed(claims(clock, exp=now - LEEWAY_S + 5))) is not None
    assert await tokens.verify(signed(claims(clock, nbf=now + LEEWAY_S - 5, aud=["another", "genfleet"]))) is not None


async def test_no_other_signature_will_do(tokens: Tokens, clock: FakeClock, provider: Provider) -> None:
    good = signed(claims(clock))
    head, body, signature = good.split(".")
    none = b64(json.dumps({"alg": "none", "kid": "rsa-1"}).encode())
    # The oldest trick: the public key, which everybody has, taken for the secret of an HMAC.
    shared = b64(json.dumps({"alg": "HS256", "kid": "rsa-1"}).encode())
    confused = f"{shared}.{body}.{b64(hmac.digest(RSA.as_pem(private=False), f'{shared}.{body}'.encode(), 'sha256'))}"
    others = RSAKey.generate_key(2048, {"kid": "rsa-1"})
    deep = b'{"alg":"RS256","kid":"rsa-1","x":' + b"[" * 3000 + b"]" * 3000 + b"}"
    forged = b64(json.dumps(claims(clock, org="acme")).encode())
    for token in (
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{head}.{body}.",
        f"{head}.{forged}.{signature}",
        f"{head}.{body}.{signature[:-8]}",
        confused,
        signed(claims(clock), key=others),
        signed(claims(clock), "RS256", jwk=others.as_dict(private=False), key=others),
        good[:40],
        "a.b.c",
        "..",
        "é.é.é",
        f"{head}.{b64(b'[]')}.{signature}",
        f"{b64(deep)}.{body}.{signature}",
        signed_text(b"[" * 4000 + b"]" * 4000, RSA),
        signed_text(b"[]", RSA),
        signed_text(b"\xff", RSA),
        good + "A" * 9000,
    ):
        assert await tokens.verify(token) is None, token[:60]
    assert provider.asked == 1


@pytest.mark.parametrize("crit", [[1], "b64", ["b64"], 5, None])
async def test_no_header_that_a_stranger_makes_up_is_an_error_of_ours(tokens: Tokens, crit: object) -> None:
    head = json.dumps({"alg": "RS256", "kid": RSA.kid, "crit": crit}).encode()
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (head, b"{}", bytes(256)))
    assert await tokens.verify(token) is None


async def test_an_algorithm_that_is_strong_but_not_ours_is_refused(tokens: Tokens, clock: FakeClock) -> None:
    token = jwt.encode({"alg": "RS512", "kid": "rsa-1"}, claims(clock), RSA, algorithms=["RS512"])
    assert await tokens.verify(token) is None


# --- whom it makes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ({"roles": ["operator"]}, Role.OPERATOR),
        ({"roles": ["user", "admin", "operator"]}, Role.ADMIN),
        ({"roles": "offline operator"}, Role.OPERATOR),
        ({"roles": ["emperor"]}, Role.USER),
        ({"roles": {"admin": True}}, Role.USER),
        ({"roles": None}, Role.USER),
        ({}, Role.USER),
        ("admin", Role.USER),
    ],
)
async def test_the_role_is_what_the_claim_says(tokens: Tokens, clock: FakeClock, said: object, role: Role) -> None:
    caller = await tokens.verify(signed(claims(clock, realm_access=said)))
    assert caller is not None
    assert caller.role is role


def test_a_word_that_contains_a_role_is_not_one() -> None:
    assert highest("administrator") is Role.USER
    assert highest(["sub-admin", 7]) is Role.USER


async def test_a_claim_may_have_dots_in_its_name(clock: FakeClock, provider: Provider) -> None:
    named = replace(SETTINGS, jwt_role_claim="https://genfleet.example/roles", jwt_tenant_claim="")
    tokens = Tokens(named, clock, provider.fetch)
    caller = await tokens.verify(signed(claims(clock, **{"https://genfleet.example/roles": ["operator"]})))
    until = clock.wall() + 300 + LEEWAY_S
    assert caller == Caller(tenant="default", role=Role.OPERATOR, by="jwt:somebody", until=until)


async def test_a_subject_fits_into_the_audit_log(tokens: Tokens, clock: FakeClock) -> None:
    caller = await tokens.verify(signed(claims(clock, sub="a\nb\0" + "x" * 5000)))
    assert caller is not None
    assert caller.by.startswith("jwt:abxxx")
    assert len(caller.by) < 140


# --- the provider's keys ----------------------------------------------------------------------------------------------
