"""How often a service looks for reference cycles.

Python looks after every 700 new objects, and through all that has survived whenever that has grown by a quarter: a few
milliseconds in which nothing is answered, and a tenth of the processor's time, for a process that makes hardly any
cycles and keeps many records. What a process has loaded by the time it serves stays until its end.
"""

from __future__ import annotations

import gc

#: New objects, and rounds of the younger generation, before the next look.
_THRESHOLDS = (20_000, 20, 20)
#: While records are read that all stay: a hundred thousand of them take a quarter less time without looks at them.
_LOADING = (200_000, 20, 20)


def loading() -> None:
    """Call once, when the process starts."""
    gc.set_threshold(*_LOADING)


def rarely() -> None:
    """Call once, when the process is ready to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
