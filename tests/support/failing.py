"""What goes wrong once."""

from __future__ import annotations

import pytest


class Fails:
    """In place of a function: fails the first time (or ``times``), and does what that does from then on."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str, times: int = 1) -> None:
        self.calls = 0
        real = getattr(owner, name)

        def once(*given: object, **named: object) -> object:
            self.calls += 1
            if self.calls <= times:
                raise ZeroDivisionError
            return real(*given, **named)

        patch.setattr(owner, name, once)
