"""What gateways write into the bucket ``keys``: new, rotated and revoked keys, sessions that were ended, and, now and
then, when keys were used."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import aclosing

from msgspec.structs import replace

from gateway.auth import Role
from gateway.entries import decoded
from gateway.keys import Keys, is_good, text_of
from gateway.loops import forever
from gateway.problems import Problem, bus_down, not_found
from shared.bus import Bus, Entry
from shared.clock import Clock
from shared.errors import BusError, BusUnavailable, WrongRevision
from shared.messages import ApiKey, SessionEnd, decode, encode
from shared.telemetry import log
from shared.topology import KEYS, api_key, key_use, session_end

_LOG = log(__name__)
_Change = Callable[[float, ApiKey], ApiKey]

_ID = re.compile(r"[0-9a-f]{16}")
#: How often what is known of keys' uses is written down.
USES_S = 60.0
#: A change that others keep getting in the way of is given up.
_TRIES = 10
#: Clocks of gateways differ, and one that is behind would take a session for a good one whose end is forgotten.
_LATE_S = 3600.0
#: So many ended sessions are kept at a time, a third of the bucket: who begins and ends sessions without end must not
#: take the room in which keys are revoked.
MOST_ENDED = 50_000


class KeyBook:
    """Writes, and tells its own gateway's view at once."""

    def __init__(self, bus: Bus, clock: Clock, keys: Keys) -> None:
        self._bus = bus
        self._clock = clock
        self._keys = keys

    # --- what admins do ----------------------------------------------------------------------------------------------

    def fresh_id(self) -> str:
        """An id for a key that is to be."""
        return secrets.token_hex(8)

    async def create(
        self, key: str, *, tenant: str, role: Role, name: str, by: str, expires_s: float | None
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which nobody can learn again.

        Raises:
            BusError: it may exist, but nobody knows its secret.
        """
        secret = secrets.token_urlsafe(32)
        now = self._clock.wall()
        made = ApiKey(
            id=key,
            tenant=tenant,
            role=role,
            name=name,
            by=by,
            hash=self._keys.hash(secret).hex(),
            created_at=now,
            expires_at=None if expires_s is None else now + expires_s,
        )
        value = encode(made)
        revision = await self._bus.bucket(KEYS.name).create(api_key(key), value)
        self._keys.take(Entry(api_key(key), value, revision, 0.0))
        return made, text_of(key, secret)

    async def rotate(self, key: str, grace_s: float) -> tuple[ApiKey, str]:
        """The key with a new secret, and its text; the old one is good for that much longer.

        Raises:
            Problem: 404, 409 (it is revoked or has expired) or 503: then nobody knows which secret is the key's; rotate
                again.
        """
        secret = secrets.token_urlsafe(32)

        def rotated(now: float, old: ApiKey) -> ApiKey:
            if not is_good(old, now):
                raise Problem(409, "the key is revoked or has expired: make another")
            return replace(
                old,
                hash=self._keys.hash(secret).hex(),
                rotated_at=now,
                former_hash=old.hash if grace_s else "",
                former_until=now + grace_s if grace_s else 0.0,
            )

        return await self._change(key, rotated), text_of(key, secret)

    async def revoke(self, key: str) -> ApiKey:
        """The key, which opens nothing any more. Raises ``Problem`` 404 or 503."""
        return await self._change(
            key, lambda now, old: old if old.revoked_at is not None else replace(old, revoked_at=now)
        )

    async def _change(self, key: str, change: _Change) -> ApiKey:
        bucket = self._bus.bucket(KEYS.name)
        try:
            for _ in range(_TRIES):
                entry = await bucket.get(api_key(key)) if _ID.fullmatch(key) else None
                if entry is None or entry.value is None:
                    raise not_found("no such key")
                old = decode(entry.value, ApiKey)
                new = change(self._clock.wall(), old)
                if new == old:
                    self._keys.take(entry)
                    return old
                value = encode(new)
                try:
                    revision = await bucket.update(api_key(key), value, entry.revision)
                except WrongRevision:
                    continue
                self._keys.take(Entry(api_key(key), value, revision, 0.0))
                return new
        except BusUnavailable:
            raise bus_down() from None
        raise Problem(503, "others are changing that key; try again", retry_after_s=1)

    async def end_session(self, session: str, until: float) -> None:
        """That session is over, on every gateway. Raises ``Problem`` 503."""
        if len(self._keys.ended) >= MOST_ENDED and session not in self._keys.ended:
            raise Problem(503, "too many sessions have been ended of late: this one ends with its time or its key")
        value = encode(SessionEnd(session=session, until=until))
        try:
            await self._bus.bucket(KEYS.name).put(session_end(session), value)
        except BusUnavailable:
            raise bus_down() from None
        self._keys.session_ended(session, until)

    # --- now and then ------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Write down when keys were used, tell of those whose time is over, and forget ended sessions that would be
        over by now; until cancelled."""
        await forever("keys", self._clock, self._keep)

    async def _keep(self) -> None:
        await self._clock.sleep(USES_S)
        self._keys.tell_ends()
        try:
            await self._write_uses()
            await self._forget_sessions()
        except BusError as error:
            _LOG.info("uses of keys are written down later", error=type(error).__name__)

    async def _write_uses(self) -> None:
        for use in self._keys.unwritten():
            value = encode(use)
            revision = await self._bus.bucket(KEYS.name).put(key_use(use.key), value)
            self._keys.take(Entry(key_use(use.key), value, revision, 0.0))

    async def _forget_sessions(self) -> None:
        now = self._clock.wall()
        for session, until in list(self._keys.ended.items()):
            if now > until + _LATE_S:
                await self._bus.bucket(KEYS.name).purge(session_end(session))
                self._keys.ended.pop(session, None)


async def any_key(bus: Bus, clock: Clock) -> bool:
    """Whether the bucket has a key that is good now. Reads it all, once."""
    async with aclosing(bus.bucket(KEYS.name).follow("key.*")) as batches:  # type: ignore[type-var]
        async for batch in batches:
            for entry in batch.entries:
                key = decoded(entry, ApiKey)
                if key is not None and is_good(key, clock.wall()):
                    return True
            if batch.caught_up:
                break
    return False
