"""Tokens of an identity provider: which are believed, as whom, and how its keys are learnt (RFC 7519, 7517, 8725)."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws, jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey
from msgspec.structs import replace

from gateway.auth import Caller, Role
from gateway.jwks import JwksUnreadable
from gateway.jwt_tokens import LEEWAY_S, Tokens, highest, tokens_of
from gateway.problems import Problem
from shared.errors import SettingsError
from shared.settings import Settings
from tests.support.clock import FakeClock, settle
from tests.support.gateway import BOUND_S, gateway
from tests.support.http_server import said, server
from tests.support.memory_bus import MemoryBroker

SETTINGS = Settings(
    auth="keys",
    secret="s" * 64,
    jwt_jwks_url="https://login.example/keys",
    jwt_issuer="https://login.example/",
    jwt_audience="genfleet",
    jwt_tenant_claim="org",
    jwt_role_claim="realm_access.roles",
)
RSA = RSAKey.generate_key(2048, {"kid": "rsa-1", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "ec-1"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed-1"})
KEYS = {"RS256": RSA, "ES256": EC, "EdDSA": ED, "Ed25519": ED}


def published(*keys: RSAKey | ECKey | OKPKey) -> bytes:
    return json.dumps(KeySet(list(keys)).as_dict(private=False)).encode()


class Provider:
    """What a provider publishes, counted."""

    def __init__(self, text: bytes) -> None:
        self.text: bytes | Exception = text
        self.asked = 0

    async def fetch(self) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider() -> Provider:
    return Provider(published(RSA, EC, ED))


@pytest.fixture
def tokens(clock: FakeClock, provider: Provider) -> Tokens:
    return Tokens(SETTINGS, clock, provider.fetch)


def claims(clock: FakeClock, **other: object) -> dict[str, object]:
    now = int(clock.wall())
    usual: dict[str, object] = {
        "iss": SETTINGS.jwt_issuer,
        "aud": "genfleet",
        "sub": "somebody",
        "exp": now + 300,
        "iat": now,
        "org": "studio",
    }
    return {name: value for name, value in {**usual, **other}.items() if value is not None}


def signed(said: dict[str, object], alg: str = "RS256", key: Any = None, **header: object) -> str:
    key = key or KEYS[alg]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # what providers still write
        return jwt.encode({"alg": alg, "kid": key.kid, **header}, said, key, algorithms=[alg])


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


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


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


async def test_a_new_key_is_learnt_when_a_token_names_it(tokens: Tokens, clock: FakeClock, provider: Provider) -> None:
    assert await tokens.verify(signed(claims(clock))) is not None
    new = RSAKey.generate_key(2048, {"kid": "rsa-2"})
    provider.text = published(RSA, new)
    await clock.advance(11)
    assert await tokens.verify(signed(claims(clock), key=new)) is not None
    assert provider.asked == 2


async def test_a_key_that_was_withdrawn_is_believed_no_longer(
    tokens: Tokens, clock: FakeClock, provider: Provider
) -> None:
    keeping = asyncio.create_task(tokens.keep_fresh())
    await settle()
    token = signed(claims(clock, exp=int(clock.wall()) + 9000))
    assert await tokens.verify(token) is not None
    provider.text = published(EC)
    await clock.advance(601)
    assert await tokens.verify(token) is None
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_made_up_keys_ask_the_provider_now_and_then_only(
    tokens: Tokens, clock: FakeClock, provider: Provider
) -> None:
    await tokens.verify(signed(claims(clock)))
    made_up = [RSAKey.import_key({**RSA.as_dict(private=True), "kid": f"made-up-{number}"}) for number in range(20)]
    together = await asyncio.gather(*(tokens.verify(signed(claims(clock), key=key)) for key in made_up))
    assert together == [None] * 20
    assert provider.asked == 1
    await clock.advance(11)
    await asyncio.gather(*(tokens.verify(signed(claims(clock), key=key)) for key in made_up))
    assert provider.asked == 2


async def test_a_request_waits_for_keys_only_if_it_needs_them(
    tokens: Tokens, clock: FakeClock, provider: Provider
) -> None:
    token = signed(claims(clock))
    await tokens.verify(token)
    never: asyncio.Event = asyncio.Event()

    async def hang() -> bytes:
        await never.wait()
        return b""

    tokens._fetch = hang
    await clock.advance(11)
    stranger = RSAKey.import_key({**RSA.as_dict(private=True), "kid": "rsa-9"})
    waiting = asyncio.create_task(tokens.verify(signed(claims(clock), key=stranger)))
    await settle()
    assert not waiting.done()
    assert await tokens.verify(signed(claims(clock, sub="another"))) is not None
    never.set()
    assert await waiting is None


async def test_while_the_provider_is_away_its_known_keys_count(
    tokens: Tokens, clock: FakeClock, provider: Provider
) -> None:
    keeping = asyncio.create_task(tokens.keep_fresh())
    await settle()
    for bad in (JwksUnreadable("away"), RuntimeError("odd"), b"not json", b'{"keys":[]}', b'{"keys":7}'):
        provider.text = bad
        await clock.advance(601)
        assert await tokens.verify(signed(claims(clock))) is not None
    assert provider.asked == 6
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_before_its_keys_are_known_nobody_is_told_that_a_token_is_bad(
    tokens: Tokens, clock: FakeClock, provider: Provider
) -> None:
    text, provider.text = provider.text, JwksUnreadable("away")
    with pytest.raises(Problem) as refused:
        await tokens.verify(signed(claims(clock)))
    assert refused.value.status == 503
    provider.text = text
    await clock.advance(11)
    assert await tokens.verify(signed(claims(clock))) is not None


async def test_what_is_no_key_for_signatures_is_left_out(clock: FakeClock) -> None:
    for_secrets = {**RSA.as_dict(private=False), "kid": "enc", "use": "enc"}
    keys = [{"kty": "oct", "k": b64(b"x" * 32), "kid": "oct"}, {"kty": "RSA", "kid": "half"}, {"kid": "?"}, for_secrets]
    text = json.dumps({"keys": [*keys, RSA.as_dict(private=False)]}).encode()
    tokens = Tokens(SETTINGS, clock, Provider(text).fetch)
    assert await tokens.verify(signed(claims(clock))) is not None
    assert tokens._kids == {"rsa-1"}


async def test_a_token_is_verified_once_and_then_known(
    tokens: Tokens, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = signed(claims(clock, exp=int(clock.wall()) + 3600))
    assert await tokens.verify(token) is not None
    monkeypatch.setattr(tokens, "_believed", lambda *_: None)
    assert await tokens.verify(token) is not None
    await clock.advance(60)
    assert await tokens.verify(token) is None


# --- settings, and the whole way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"jwt_issuer": ""}, "GENFLEET_JWT_ISSUER"),
        ({"jwt_audience": ""}, "GENFLEET_JWT_AUDIENCE"),
        ({"jwt_jwks_url": "http://login.example/keys"}, "https://"),
        ({"jwt_jwks_url": "ftp://login.example/keys"}, "https://"),
        ({"jwt_jwks_url": "file://elsewhere/keys"}, "https://"),
        ({"jwt_jwks_url": "keys.json"}, "https://"),
        ({"jwt_jwks_url": "https:///keys"}, "https://"),
    ],
)
def test_what_cannot_be_trusted_is_refused_at_the_start(clock: FakeClock, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        tokens_of(replace(SETTINGS, **changed), clock)


def test_without_a_jwks_there_are_no_tokens(clock: FakeClock) -> None:
    assert tokens_of(Settings(), clock) is None


@pytest.fixture(params=["web", "file"])
async def source(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "file":
        path = tmp_path / "the keys.json"
        path.write_bytes(published(RSA))
        yield path.as_uri()
        return
    async with server(lambda _: said(published(RSA), "200 OK", "Content-Type: application/json")) as (url, _):
        yield f"{url}/keys"


async def test_a_token_opens_the_gateway(source: str, tmp_path: Path, clock: FakeClock) -> None:
    settings = replace(SETTINGS, jwt_jwks_url=source, auth="auto")
    async with gateway(MemoryBroker(clock), tmp_path, settings) as gw:
        user = signed(claims(clock))
        operator = signed(claims(clock, realm_access={"roles": ["operator"]}))
        async with asyncio.timeout(BOUND_S):
            shown = await gw.client.get("/v1/session", headers={"Authorization": f"Bearer {user}"})
        assert shown.json() == {"tenant": "studio", "role": "user", "by": "jwt:somebody"}
        for token, held in ((user, 403), (operator, 200)):
            answer = await gw.client.post("/v1/queue/hold", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == held
        refused = await gw.client.get("/v1/jobs", headers={"Authorization": f"Bearer {user[:-4]}"})
        assert refused.status_code == 401
        assert (await gw.client.get("/v1/jobs")).status_code == 401


@pytest.mark.parametrize(
    "pieces", [said(b"", "302 Found", "Location: http://169.254.169.254/"), said(b"x" * (2 << 20)), said(b"", "500 No")]
)
async def test_a_provider_that_answers_oddly_lets_nobody_in(
    pieces: list[bytes], tmp_path: Path, clock: FakeClock
) -> None:
    async with server(lambda _: pieces) as (url, seen):
        settings = replace(SETTINGS, jwt_jwks_url=url)
        async with gateway(MemoryBroker(clock), tmp_path, settings) as gw, asyncio.timeout(BOUND_S):
            shown = {"Authorization": f"Bearer {signed(claims(clock))}"}
            answer = await gw.client.get("/v1/jobs", headers=shown)
            # What needs no key does not wait for one, or fail for want of it.
            assert (await gw.client.get("/healthz", headers=shown)).status_code == 200
        assert answer.status_code == 503
        assert len(seen) == 1
