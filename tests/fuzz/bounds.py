"""How much is generated: little and always the same in CI, more and always other under ``make fuzz``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

#: Times as many examples as CI takes.
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def bounded(examples: int) -> settings:
    """Settings for so many examples."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
