"""What a receiver's answer means, and when the next try is due. Pure.

Source: Standard Webhooks 1.0, "Delivery success and failure" and "Deliverability and reliability": only 2xx is success,
410 ends it, redirects are not followed, Retry-After is heeded, and tries spread exponentially with jitter over days.
"""

from __future__ import annotations

from msgspec import Struct

FIRST_S = 5.0
GROWTH = 4.0
LONGEST_S = 2 * 3600.0
#: Each pause is shortened or lengthened by up to so much of it, at random.
JITTER = 0.2

_GONE, _TOO_MANY = 410, 429


class Told(Struct, frozen=True):
    """The receiver took it."""

    status: int


class Failed(Struct, frozen=True, kw_only=True):
    """It did not.

    Attributes:
        status: its answer; 0: none came.
        final: trying again cannot help.
        down: the receiver as a whole has trouble, not only with this one.
        retry_after_s: how long it asked to be left alone.
    """

    error: str
    status: int = 0
    final: bool = False
    down: bool = False
    retry_after_s: float = 0.0


Verdict = Told | Failed


def verdict(status: int, retry_after: str | None) -> Verdict:
    """What that answer means.

    Args:
        retry_after: the header, if there is one; only seconds are understood, a date would need the receiver's clock.
    """
    if 200 <= status < 300:
        return Told(status)
    wait = retry_after.strip() if retry_after is not None else ""
    asked = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 10 else 0.0
    return Failed(
        error=f"answered {status}" + (": it wants no more of them" if status == _GONE else ""),
        status=status,
        final=status == _GONE,
        down=status == _TOO_MANY or status >= 500,
        retry_after_s=min(asked, LONGEST_S),
    )


def pause(tries: int, chance: float, retry_after_s: float = 0.0) -> float:
    """Seconds from the failure of that try (1 is the first) to the next.

    Args:
        chance: random, 0 to 1.
    """
    exact = min(LONGEST_S, FIRST_S * GROWTH ** min(tries - 1, 16))
    return max(retry_after_s, exact * (1.0 + JITTER * (2.0 * chance - 1.0)))


def due_after(tries: int, age_s: float, retry_s: float, chance: float, retry_after_s: float = 0.0) -> float | None:
    """Seconds to the next try of a delivery that is that old; None: that was the last. The last but one is followed by
    one at the very end of the time."""
    if age_s >= retry_s:
        return None
    return min(pause(tries, chance, retry_after_s), retry_s - age_s)
