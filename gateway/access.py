"""Who may do what, put together: keys, browsers' sessions, an identity provider's tokens, and the log of what admins
did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.audit import Audit
from gateway.auth import keyless
from gateway.identity import Identity
from gateway.jwt_tokens import tokens_of
from gateway.key_book import KeyBook, any_key
from gateway.keys import Keys
from gateway.sessions import Sessions
from shared.bus import Batch, Bus
from shared.clock import Clock
from shared.errors import SettingsError
from shared.settings import Settings
from shared.topology import AUDIT, KEYS


class Access:
    """The parts. ``follows`` must be fed; ``start`` and ``stop`` it.

    Args:
        secret: of the deployment.

    Raises:
        SettingsError: the admin key cannot be one, or what an identity provider's tokens need is not there.
    """

    def __init__(self, bus: Bus, settings: Settings, clock: Clock, secret: str) -> None:
        self.keys = Keys(clock, secret, settings.admin_key)
        self.key_book = KeyBook(bus, clock, self.keys)
        self.sessions = Sessions(self.keys, settings, clock, secret)
        self.audit = Audit(bus, clock)
        self._tokens = tokens_of(settings, clock)
        needed = not keyless(settings)
        self.identity = Identity(self.keys, self.sessions, self._tokens, needed=needed)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def follows(self) -> tuple[tuple[str, Callable[[Batch], None]], ...]:
        """Buckets, and who takes what they bring."""
        return (KEYS.name, self.keys.on_keys), (AUDIT.name, self.audit.on_audit)

    def start(self) -> None:
        """Begin what goes on beside the requests."""
        self._tasks.append(asyncio.create_task(self.key_book.keep()))
        if self._tokens is not None and self.identity.needed:
            self._tasks.append(asyncio.create_task(self._tokens.keep_fresh()))

    async def stop(self) -> None:
        """End it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def check_somebody_may(bus: Bus, settings: Settings, clock: Clock) -> None:
    """Refuse to serve when nobody could ever come in.

    Raises:
        SettingsError: keys are asked for and there is none; says how to make the first one.
    """
    if keyless(settings) or settings.admin_key or settings.jwt_jwks_url or await any_key(bus, clock):
        return
    raise SettingsError(
        "GENFLEET_AUTH=keys, and there is no key with which anybody could come in. Give the first admin one: "
        "`openssl rand -hex 32 > admin-key`, then GENFLEET_ADMIN_KEY_FILE=admin-key for the gateway and "
        "GENFLEET_KEY_FILE=admin-key for `genfleet keys create`, which makes the others. Or set "
        "GENFLEET_JWT_JWKS_URL to take an identity provider's tokens"
    )
