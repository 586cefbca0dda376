"""Logs of a run: kept from the terminal, and an error in them is a broken promise."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any, Self

import structlog

from tests.simulation.loop import LANE
from tests.simulation.witness import Witness

#: Errors that faults bring about as they should.
_MEANT = frozenset({"group_killed"})


class Quiet:
    """While it lasts, log lines go to ``witness`` only."""

    def __init__(self) -> None:
        self.witness: Witness | None = None
        self._before = structlog.get_config()

    def __enter__(self) -> Self:
        structlog.configure(
            processors=[self._take],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            cache_logger_on_first_use=False,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        structlog.configure(**self._before)

    def _take(self, logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        lane = LANE.get()
        lives = lane is None or not lane.dead
        if method in ("error", "exception", "critical") and event.get("event") not in _MEANT and lives:
            text = traceback.format_exc() if sys.exc_info()[0] else ""
            if self.witness is not None:
                self.witness.breaks(f"{lane.name if lane else ''} logged {event} {text}")
        if self.witness is not None and self.witness.lines is not None:
            said = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
            self.witness.say(f"{lane.name if lane else ''}: {event['event']} {said}")
        raise structlog.DropEvent
