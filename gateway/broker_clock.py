"""The broker's time, as far as a gateway can know it."""

from __future__ import annotations

from shared.clock import Clock


class BrokerClock:
    """What time the broker's clock shows, without asking it.

    An entry that arrives carries the broker's time of its write, which lies before the arrival: broker time minus own
    monotonic time is therefore at least ``timestamp - arrival``, and the quickest delivery comes closest. So the
    largest such difference is kept. It is forgotten after two windows without renewal, so that a broker whose clock
    was set back is not believed to be in the future for ever; leases arrive every few seconds and keep it exact.
    """

    WINDOW_S = 60.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead: float | None = None
        self._before: float | None = None
        self._since = clock.monotonic()

    def saw(self, timestamp: float) -> None:
        """An entry with that timestamp has just arrived."""
        now = self._clock.monotonic()
        ahead = timestamp - now
        if now - self._since > self.WINDOW_S:
            self._before, self._ahead, self._since = self._ahead, None, now
        if self._ahead is None or ahead > self._ahead:
            self._ahead = ahead

    def now(self) -> float | None:
        """The broker's time; None if nothing has been heard of it."""
        ahead = self._ahead
        if ahead is None or (self._before is not None and self._before > ahead):
            ahead = self._before
        return None if ahead is None else self._clock.monotonic() + ahead

    def since(self, timestamp: float | None) -> float:
        """Seconds by the broker's clock since that time; 0 if nothing is known."""
        now = self.now()
        return 0.0 if now is None or timestamp is None else max(0.0, now - timestamp)
