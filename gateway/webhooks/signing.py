"""Secrets and signatures of webhooks. Pure.

Source: Standard Webhooks 1.0, "Signature scheme" and "Webhook headers": HMAC-SHA256 over ``id.timestamp.body`` with the
bytes behind ``whsec_``, in base64 behind ``v1,``; several signatures are separated by spaces.

A secret is derived from the deployment's by the tenant's name and the version, so that nothing secret is stored, and
every replica has the same.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from shared.secrets import derive

_USE = "webhooks/1"
_PREFIX = "whsec_"


def secret_of(secret: str, tenant: str, version: int) -> str:
    """The tenant's secret as it is shown to it: 32 bytes.

    Args:
        secret: the deployment's.
    """
    made = hmac.digest(derive(secret, _USE), f"{tenant}\n{version}".encode(), hashlib.sha256)
    return _PREFIX + base64.b64encode(made).decode()


def signature(secret: str, ident: str, timestamp: int, body: bytes) -> str:
    """One signature over these bytes."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = hmac.digest(key, f"{ident}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed).decode()


def headers(secrets: tuple[str, ...], ident: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one try.

    Args:
        secrets: one signature with each.
        timestamp: seconds since 1970 of this try.
    """
    return {
        "webhook-id": ident,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(secret, ident, timestamp, body) for secret in secrets),
        "content-type": "application/json",
    }
