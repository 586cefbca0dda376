"""How a tenant stands with its rate limit after a submit: noted where it is known, sent as headers where answers leave
(``gateway.exposure``), whichever API the submit came by.

Headers: ``RateLimit-Policy`` and ``RateLimit`` of draft-ietf-httpapi-ratelimit-headers (as of its version 11).
"""

from __future__ import annotations

from contextvars import ContextVar

from msgspec import Struct

_POLICY = "submits"


class Standing(Struct, frozen=True):
    """What is left of a rate limit, at this replica.

    Attributes:
        quota: submits that may come at once.
        window_s: in which so many come back.
        remaining: of the quota, now.
        reset_s: until the quota is whole again.
    """

    quota: int
    window_s: int
    remaining: int
    reset_s: int

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As headers of an answer."""
        return [
            (b"ratelimit-policy", f'"{_POLICY}";q={self.quota};w={self.window_s}'.encode()),
            (b"ratelimit", f'"{_POLICY}";r={self.remaining};t={self.reset_s}'.encode()),
        ]


#: Of the request that this task answers; None: it was no submit, or the tenant has no such limit.
standing: ContextVar[Standing | None] = ContextVar("standing", default=None)
