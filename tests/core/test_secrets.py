"""One secret, many keys."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from shared.secrets import derive, equal


def test_it_is_hkdf_of_one_block() -> None:
    """RFC 5869, sections 2.2 and 2.3: PRK = HMAC(salt, secret); OKM = HMAC(PRK, info | 0x01)."""
    prk = hmac.new(b"genfleet", b"s3cret", hashlib.sha256).digest()
    assert derive("s3cret", "media-links/1") == hmac.new(prk, b"media-links/1\x01", hashlib.sha256).digest()


def test_uses_and_secrets_differ() -> None:
    keys = {derive(secret, use) for secret in ("one", "two") for use in ("a/1", "a/2", "b/1")}
    assert len(keys) == 6
    assert {len(key) for key in keys} == {32}


def test_no_secret_is_no_key() -> None:
    with pytest.raises(ValueError, match="no secret"):
        derive("", "a/1")


def test_equality() -> None:
    assert equal("ab", b"ab")
    assert not equal("ab", "abc")
    assert not equal(b"\xff", "ÿ")
