"""How fast tenants may submit: a token bucket for each that has a limit. Pure: time is given.

Each of n gateways lets through its n-th part, because asking one another would cost a round trip per submit. What may
pass beyond a tenant's limit of ``rate`` and ``burst`` is bounded, see ``docs/limits.md``.
"""

from __future__ import annotations

import math

from msgspec import Struct

from gateway.standing import Standing

_FORGET_ABOVE = 4096
#: Sums of parts of a token come out a little below the whole.
_NEARLY = 1e-9


class Verdict(Struct, frozen=True):
    """Whether so many may pass, and if not, in how many seconds they may: None if never."""

    passed: bool
    standing: Standing
    wait_s: float | None = None


class _Bucket:
    __slots__ = ("at", "level")

    def __init__(self, level: float, at: float) -> None:
        self.level = level
        self.at = at


class Rates:
    """Of all tenants, at this gateway."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(
        self, tenant: str, rate: float, burst: int | None, parts: int, now: float, count: int = 1, *, ask: bool = False
    ) -> Verdict:
        """Whether ``count`` submits may pass now; they are counted if they do, all or none, unless this only asks.

        A batch that is more than this gateway's part of the burst, but not more than the burst, passes when the bucket
        is full, and what it took too much is paid back before anything else passes.

        Args:
            rate: per second, over all gateways.
            burst: at once, over all gateways; None or 0: what comes in a second. At least one for each gateway.
            parts: how many gateways there are.
        """
        burst = burst or math.ceil(rate)
        rate, most = rate / parts, max(1.0, burst / parts)
        if rate <= 0.0:
            return Verdict(False, Standing(0, 1, 0, 1))
        bucket = self._buckets.get(tenant)
        if bucket is None:
            self._forget(now, rate, most)
            bucket = self._buckets[tenant] = _Bucket(most, now)
        bucket.level = min(most, bucket.level + max(0.0, now - bucket.at) * rate)
        bucket.at = now
        needed = min(float(count), most)
        passed = bucket.level + _NEARLY >= needed and count <= burst
        wait_s = None
        if passed and not ask:
            bucket.level -= count
        elif not passed and count <= burst:
            wait_s = (needed - bucket.level) / rate
        standing = Standing(
            quota=int(most + _NEARLY),
            window_s=math.ceil(most / rate - _NEARLY),
            remaining=max(0, int(bucket.level + _NEARLY)),
            reset_s=math.ceil((most - bucket.level) / rate - _NEARLY),
        )
        return Verdict(passed, standing, wait_s)

    def _forget(self, now: float, rate: float, most: float) -> None:
        """Buckets that are as good as full say what their absence says. Now and then, when there are many."""
        if len(self._buckets) < _FORGET_ABOVE:
            return
        refilled_s = most / rate
        quiet = [name for name, bucket in self._buckets.items() if now - bucket.at > max(3600.0, refilled_s)]
        for name in quiet or list(self._buckets)[: _FORGET_ABOVE // 4]:
            del self._buckets[name]
