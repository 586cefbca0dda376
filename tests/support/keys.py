"""A gateway that asks for keys, and keys for it."""

from __future__ import annotations

from typing import Any

from shared.settings import Settings
from tests.support.clock import settle
from tests.support.gateway import GatewayUnderTest

#: The key of the settings, with which the others are made.
ADMIN = "the-first-key-" + "a" * 32
SETTINGS = Settings(auth="keys", admin_key=ADMIN, secret="s" * 64, default_model="wan-demo", unknown_model="queue")
ROLES = ("user", "operator", "admin")


def bearer(key: object) -> dict[str, str]:
    """The header that shows it."""
    return {"Authorization": f"Bearer {key}"}


async def make(gw: GatewayUnderTest, **body: object) -> dict[str, Any]:
    """A new key, as the gateway shows it this once."""
    answer = await gw.client.post("/v1/keys", json=body, headers=bearer(ADMIN))
    assert answer.status_code == 201, answer.text
    await settle()
    return dict(answer.json())


async def status(gw: GatewayUnderTest, key: object, method: str = "GET", path: str = "/v1/jobs") -> int:
    """What is answered to whoever shows that key."""
    return (await gw.client.request(method, path, headers=bearer(key))).status_code
