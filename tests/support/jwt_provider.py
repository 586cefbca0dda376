"""An identity provider: its keys, what it publishes, and tokens that it signs."""

from __future__ import annotations

import asyncio
import base64
import json
import warnings
from typing import Any

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from shared.settings import Settings
from tests.support.clock import FakeClock

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


def b64(data: bytes) -> str:
    """As tokens carry bytes."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
