"""One secret, many keys."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from shared.secrets import Mac, derive, equal


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


@pytest.mark.parametrize("key", [b"", b"k", b"k" * 32, b"k" * 64], ids=len)
def test_a_mac_is_hmac_sha256_again_and_again(key: bytes) -> None:
    mac = Mac(key)
    for text in (b"", b"text", b"t" * 1000, b"text"):
        assert mac.digest(text) == hmac.digest(key, text, hashlib.sha256)


def test_a_macs_key_is_no_longer_than_a_block() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        Mac(b"k" * 65)


def test_equality() -> None:
    assert equal("ab", b"ab")
    assert not equal("ab", "abc")
    assert not equal(b"\xff", "ÿ")
