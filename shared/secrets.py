"""One secret of a deployment, ``GENFLEET_SECRET``, and from it a key of its own for each use, so that what is learnt of
one use says nothing about another (HKDF, RFC 5869, with the use as its info)."""

from __future__ import annotations

import hashlib
import hmac

_LENGTH = 32


def derive(secret: str, use: str) -> bytes:
    """32 bytes for that use of the secret. Another ``use`` gives other bytes; the same gives the same on every replica.

    Args:
        use: names the use and its version: ``media-links/1``, ``api-keys/1``.

    Raises:
        ValueError: the secret is empty.
    """
    if not secret:
        raise ValueError("there is no secret to derive from")
    extracted = hmac.digest(b"genfleet", secret.encode(), hashlib.sha256)
    return hmac.digest(extracted, use.encode() + b"\x01", hashlib.sha256)[:_LENGTH]


class Mac:
    """HMAC-SHA256 under one key. The hashes of the key's two blocks are made once (RFC 2104, section 4): with them a
    short text takes a third of the time."""

    def __init__(self, key: bytes) -> None:
        """
        Raises:
            ValueError: it is longer than a block.
        """
        block = hashlib.sha256().block_size
        if len(key) > block:
            raise ValueError(f"a key of more than {block} bytes")
        padded = key.ljust(block, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def digest(self, text: bytes) -> bytes:
        """32 bytes."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.digest()


def equal(one: bytes | str, other: bytes | str) -> bool:
    """Whether the two are the same, in a time that does not tell how far they agree."""
    encoded = (text.encode() if isinstance(text, str) else text for text in (one, other))
    return hmac.compare_digest(*encoded)
