"""Who waits on a connection for which answer, and until when.

One timer for all of them, set for the earliest end: a timer for each, set and cancelled, costs as much of the processor
as half of a request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shared.nats_bus.client import Msg


@dataclass(slots=True)
class Waiting:
    """Who waits for the answer to what was sent to that subject; None: there will be none."""

    subject: str
    answer: asyncio.Future[Msg | None]
    until: float
    denied: bool = False


class Answers:
    """Those that one connection waits for, by the subject on which each is awaited."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def expect(self, reply: str, subject: str, timeout_s: float) -> Waiting:
        """An answer on ``reply`` to what was sent to ``subject``; ``forget`` it in the end."""
        until = self._loop.time() + timeout_s
        waiting = self._waiting[reply] = Waiting(subject, self._loop.create_future(), until)
        if self._timer is None or until < self._next:
            self._look_at(until)
        return waiting

    def forget(self, reply: str) -> None:
        """Nobody waits any more."""
        del self._waiting[reply]

    def came(self, message: Msg) -> None:
        """A message on one of those subjects."""
        waiting = self._waiting.get(message.subject)
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(message)

    def denied(self, subject: str) -> None:
        """The server took nothing that was sent to that subject; it names it in letters of any size."""
        for waiting in self._waiting.values():
            if waiting.subject.lower() == subject.lower():
                waiting.denied = True
                _give_up(waiting)

    def give_up(self) -> None:
        """No more answers will come."""
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._waiting.values():
            _give_up(waiting)

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next, self._timer = when, self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Give up those whose time is over."""
        self._timer, now = None, self._loop.time()
        left = []
        for waiting in self._waiting.values():
            if waiting.until <= now:
                _give_up(waiting)
            else:
                left.append(waiting.until)
        if left:
            self._look_at(min(left))


def _give_up(waiting: Waiting) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(None)
