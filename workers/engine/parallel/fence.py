"""Before an exchange: either all ranks go into it, or none does because one of them has run out of memory.

A rank that fails between two exchanges would leave the others waiting in the next one for ever. So a region of work in
which ranks exchange is given a *fence*: a small agreement that every exchange (``collective``) asks for first. A rank
that fails takes part in one more agreement, as the one that failed, and all ranks leave the region. The agreement goes
over gloo on the host and waits for no device; a device that has work queued does not notice it.

What runs the region decides how wide it is: ``course.Course.exchanging`` fences the whole group, ``guard.Guard`` the
ranks of one sequence, whose number of exchanges may differ from that of the other half of guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_check: ContextVar[Callable[[], None] | None] = ContextVar("fence", default=None)


@contextmanager
def within(check: Callable[[], None]) -> Iterator[None]:
    """Exchanges inside are preceded by that agreement, which raises if a rank has failed."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def check() -> None:
    """The agreement of the innermost region; nothing outside of any.

    Raises:
        PeerFailed, AgreedFailure, PeersLost: as the region's own agreement does.
    """
    agree = _check.get()
    if agree is not None:
        agree()
