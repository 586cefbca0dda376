"""An identity provider's public keys (JWKS, RFC 7517): fetched from where the settings say, and read."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, KeySet, OKPKey, RSAKey
from msgspec import Struct

from shared.errors import GenfleetError, SettingsError
from shared.telemetry import log

_LOG = log(__name__)

_FETCH_S = 10.0
_MAX_JWKS = 1024 * 1024

#: Gives the text of a JWKS.
Fetch = Callable[[], Coroutine[Any, Any, bytes]]


class JwksUnreadable(GenfleetError):
    """The identity provider's keys cannot be read."""


class _KeySet(Struct, frozen=True):
    keys: list[dict[str, Any]]


_jwks = msgspec.json.Decoder(_KeySet)


def source(url: str) -> Fetch:
    """What reads the keys at that URL, and raises JwksUnreadable.

    Raises:
        SettingsError: what comes from there could not be trusted.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "file" if parts.netloc in ("", "localhost"):
            path = Path(unquote(parts.path))
            return lambda: _from_file(path)
        case "https" if parts.netloc:
            return lambda: _from_web(url)
        case "http" if _is_loopback(parts.hostname or ""):
            return lambda: _from_web(url)
        case _:
            raise SettingsError(
                "GENFLEET_JWT_JWKS_URL must be https://…, file:///…, or http:// on the loopback: who can change what "
                "comes from there can make tokens"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _from_file(path: Path) -> bytes:
    try:
        return await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise JwksUnreadable(f"{path}: {error.strerror}") from error


async def _from_web(url: str) -> bytes:
    text = b""
    try:
        async with (
            asyncio.timeout(_FETCH_S),
            httpx.AsyncClient(follow_redirects=False, trust_env=urlsplit(url).scheme == "https") as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise JwksUnreadable(f"status {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                text += chunk
                if len(text) > _MAX_JWKS:
                    raise JwksUnreadable("it is too long to be a set of keys")
    except (httpx.HTTPError, TimeoutError) as error:
        raise JwksUnreadable(str(error) or type(error).__name__) from error
    return text


def usable(text: bytes) -> KeySet:
    """The public keys for signatures in a JWKS; others in it are left out (RFC 7517, section 5). Raises
    JwksUnreadable."""
    try:
        found = _jwks.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise JwksUnreadable(f"not a JWKS: {error}") from error
    keys: list[Any] = []
    for data in found.keys:
        if data.get("kty") not in ("RSA", "EC", "OKP") or data.get("use", "sig") != "sig":
            continue
        try:
            key = JWKRegistry.import_key(data)
        except (JoseError, ValueError) as error:
            _LOG.warning("a key of the identity provider is of no use", kid=str(data.get("kid")), error=str(error))
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey):
            keys.append(key)
    if not keys:
        raise JwksUnreadable("it holds no public key for signatures")
    return KeySet(keys)
