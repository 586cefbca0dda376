"""Which width to launch the group at next, on which devices, and after how long. Pure.

A launch *fails* when the group ends before it is ready. After ``attempts`` failures in a row the group is tried at
half the width, not below ``narrowest``: 8 → 4 → 2 → 1. At a narrower width each try takes the next slice of the
devices, so that one dead card out of eight costs four and not all. A group that was ready and is *lost* comes back at
the same width, the first time at once; if that happens again before a job was answered, ever later.
"""

from __future__ import annotations

#: Seconds before a launch that follows the n-th trouble in a row.
BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
#: Seconds before a checkpoint that cannot be loaded is tried again: somebody must repair it first.
REPAIR_S = (60.0, 120.0, 300.0, 600.0)


class Launches:
    """The history of a group's launches, as far as the next one depends on it.

    Attributes:
        width: ranks of the next launch.
        full_width: ranks that the pool asks for.
    """

    def __init__(self, full_width: int, narrowest: int, attempts: int) -> None:
        self.full_width = full_width
        self.width = full_width
        self._narrowest = narrowest
        self._attempts = attempts
        self._failures = 0
        self._troubles = 0
        self._unloadable = 0

    def failed(self) -> None:
        """The group ended before it was ready."""
        self._failures += 1
        self._troubles += 1
        if self._failures >= self._attempts and self.width // 2 >= self._narrowest:
            self.width //= 2
            self._failures = 0

    def unloadable(self) -> None:
        """The group said that its checkpoint cannot be loaded: no width would help."""
        self._unloadable += 1

    def ready(self) -> None:
        """The group came up."""
        self._failures = 0
        self._unloadable = 0

    def lost(self) -> None:
        """The group ended after it had been ready."""
        self._troubles += 1

    def served(self) -> None:
        """The group answered a job and stays: it is sound."""
        self._troubles = 0

    @property
    def exhausted(self) -> bool:
        """Even the narrowest width keeps failing."""
        return self._failures >= self._attempts

    @property
    def first_device(self) -> int:
        """Index, among the pool's devices, of the first that the next launch takes."""
        slices = self.full_width // self.width
        return (self._failures % slices) * self.width

    @property
    def delay_s(self) -> float:
        """Seconds to wait before the next launch."""
        if self._unloadable:
            return REPAIR_S[min(self._unloadable, len(REPAIR_S)) - 1]
        if self._troubles == 0:
            return 0.0
        return BACKOFF_S[min(self._troubles, len(BACKOFF_S)) - 1]
