"""How an identity provider's keys are learnt, kept and forgotten, and what its tokens open (RFC 7517)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import RSAKey
from msgspec.structs import replace

from gateway.jwks import JwksUnreadable
from gateway.jwt_tokens import Tokens, tokens_of
from gateway.problems import Problem
from shared.errors import SettingsError
from shared.settings import Settings
from tests.support.clock import FakeClock, settle
from tests.support.gateway import BOUND_S, gateway
from tests.support.http_server import said, server
from tests.support.jwt_provider import EC, ED, RSA, SETTINGS, Provider, b64, claims, published, signed
from tests.support.memory_bus import MemoryBroker


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider() -> Provider:
    return Provider(published(RSA, EC, ED))


@pytest.fixture
def tokens(clock: FakeClock, provider: Provider) -> Tokens:
    return Tokens(SETTINGS, clock, provider.fetch)


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
