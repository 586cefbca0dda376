"""API keys: ``gf_<id>_<secret>``. The bucket ``keys`` holds what each may do and an HMAC of its secret, never that
itself; every gateway follows it, so that a key is known, or revoked, everywhere as soon as a message arrives.

The HMAC's key is derived from the deployment's secret (a pepper): who reads the bucket can neither use nor try keys. A
plain HMAC does, where passwords would need a slow one, because a secret here has 256 random bits.

A request costs one look-up and one HMAC, whether the key is right, wrong or unknown, and asks the bus nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.auth import Caller, Role
from gateway.entries import decoded
from gateway.problems import Problem, bus_down, not_found
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BusError, BusUnavailable, WrongRevision
from shared.messages import DEFAULT_TENANT, ApiKey, KeyEntry, KeyUse, SessionEnd, decode, encode
from shared.secrets import derive
from shared.telemetry import log
from shared.topology import KEYS, api_key, key_use, session_end

_LOG = log(__name__)
_Change = Callable[[float, ApiKey], ApiKey]

_ID = re.compile(r"[0-9a-f]{16}")
_TEXT = re.compile(r"gf_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
#: The id of the admin key of the settings.
BOOTSTRAP = "bootstrap"
#: How often what is known of keys' uses is written down.
USES_S = 60.0
#: A change that others keep getting in the way of is given up.
_TRIES = 10


@dataclass(slots=True)
class _Known:
    key: ApiKey
    revision: int
    caller: Caller
    hash: bytes
    former: bytes
    used_at: float = 0.0


class Keys:
    """All keys. Filled by the follower of ``keys``.

    Args:
        secret: of the deployment.
        admin_key: the key of the settings, if there is one: role admin, tenant default, id ``bootstrap``.
    """

    def __init__(self, bus: Bus, clock: Clock, secret: str, admin_key: str = "") -> None:
        self._bus = bus
        self._clock = clock
        self._pepper = derive(secret, "api-keys/1")
        self._admin_key = admin_key
        # What an unknown id is compared with, so that it costs what a known one does.
        self._nobody = self._of(ApiKey(id="", tenant=DEFAULT_TENANT, role=Role.USER, hash="00" * 32, revoked_at=0.0), 0)
        #: Told the id of a key when it, or a secret of it, has ended: at once when it is revoked or rotated, within
        #: ``USES_S`` when its time is over.
        self.on_end: Callable[[str], None] = lambda _: None
        self._ends_seen = clock.wall()
        #: All keys have been read once: one that is not known now does not exist.
        self.read = False
        self._forget_all()

    def _forget_all(self) -> None:
        self._known: dict[str, _Known] = {}
        self._written: dict[str, float] = {}
        #: Sessions that were ended before their time, and when that would have been.
        self._ended: dict[str, float] = {}
        if self._admin_key:
            own = ApiKey(id=BOOTSTRAP, tenant=DEFAULT_TENANT, role=Role.ADMIN, hash=self._hash(self._admin_key).hex())
            self._known[BOOTSTRAP] = self._of(own, 0)

    # --- who asks ----------------------------------------------------------------------------------------------------

    def verify(self, text: str) -> Caller | None:
        """Whose key this is; None if it is nobody's, or no longer."""
        found = _TEXT.fullmatch(text)
        if found is None:
            known, digest = self._known.get(BOOTSTRAP, self._nobody), self._hash(text)
        else:
            known, digest = self._known.get(found[1], self._nobody), self._hash(found[2])
        now = self._clock.wall()
        right = hmac.compare_digest(digest, known.hash)
        was_right = hmac.compare_digest(digest, known.former) and now < known.key.former_until
        if not (right or was_right) or not _lives(known.key, now):
            return None
        known.used_at = now
        return known.caller

    def fingerprint(self, text: str) -> tuple[str, str]:
        """The id of a valid key and a word for its very secret: what a session is bound to."""
        found = _TEXT.fullmatch(text)
        key, secret = (BOOTSTRAP, text) if found is None else (found[1], found[2])
        return key, self._hash(secret)[:8].hex()

    def of_session(self, key: str, fingerprint: str, session: str) -> Caller | None:
        """Whose session this is that was begun with that key; None if it was ended or the key is no longer good."""
        known = self._known.get(key)
        now = self._clock.wall()
        if known is None or session in self._ended or not _lives(known.key, now):
            return None
        good = known.hash[:8].hex() == fingerprint
        was_good = known.former[:8].hex() == fingerprint and now < known.key.former_until
        if not (good or was_good):
            return None
        known.used_at = now
        return known.caller

    # --- what the follower brings ------------------------------------------------------------------------------------

    def on_keys(self, batch: Batch) -> None:
        """Entries of ``keys``."""
        if batch.reset:
            self._forget_all()
        for entry in batch.entries:
            self._take(entry)
        self.read = self.read or batch.caught_up

    def _take(self, entry: Entry) -> None:
        found: KeyEntry | None = decoded(entry, KeyEntry)  # type: ignore[arg-type]
        match found:
            case ApiKey() as key:
                before = self._known.get(key.id)
                if before is not None and before.revision >= entry.revision:
                    return
                if key.role not in set(Role):
                    _LOG.error("a key has a role that this version does not know: it opens nothing", key=key.id)
                    self._known.pop(key.id, None)
                    return
                self._known[key.id] = self._of(key, entry.revision)
                if before is not None:
                    self._known[key.id].used_at = before.used_at
                    if key.revoked_at is not None or not (key.former_hash or before.key.hash == key.hash):
                        self.on_end(key.id)
            case KeyUse(key=used, at=at):
                self._written[used] = max(at, self._written.get(used, 0.0))
            case SessionEnd(session=session, until=until):
                self._ended[session] = until
            case None:
                if entry.key.startswith("key."):
                    self._known.pop(entry.key.removeprefix("key."), None)

    def _of(self, key: ApiKey, revision: int) -> _Known:
        caller = Caller(tenant=key.tenant, role=Role(key.role), by=key.id)
        former = bytes.fromhex(key.former_hash) if key.former_hash else bytes(32)
        return _Known(key, revision, caller, bytes.fromhex(key.hash), former)

    def _hash(self, secret: str) -> bytes:
        return hmac.digest(self._pepper, secret.encode(), hashlib.sha256)

    # --- what admins do ----------------------------------------------------------------------------------------------

    def all(self) -> Iterable[tuple[ApiKey, float | None]]:
        """Every key, newest first, and when it was last used, if it ever was."""
        known = sorted(self._known.values(), key=lambda known: (known.key.created_at, known.key.id), reverse=True)
        return [(one.key, self._used(one)) for one in known if one.key.id != BOOTSTRAP]

    def used(self, key: ApiKey) -> float | None:
        """When it was last used, if it ever was."""
        known = self._known.get(key.id)
        return None if known is None else self._used(known)

    def _used(self, known: _Known) -> float | None:
        return max(known.used_at, self._written.get(known.key.id, 0.0)) or None

    def now(self) -> float:
        """By the clock that keys' ends are judged by."""
        return self._clock.wall()

    def check(self, key: str) -> None:
        """Raises ``Problem`` 404 unless there is such a key, or there may be."""
        if self.read and (key == BOOTSTRAP or key not in self._known):
            raise not_found("no such key")

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
            hash=self._hash(secret).hex(),
            created_at=now,
            expires_at=None if expires_s is None else now + expires_s,
        )
        value = encode(made)
        revision = await self._bus.bucket(KEYS.name).create(api_key(key), value)
        self._take(Entry(api_key(key), value, revision, 0.0))
        return made, _text(key, secret)

    async def rotate(self, key: str, grace_s: float) -> tuple[ApiKey, str]:
        """The key with a new secret, and its text; the old one is good for that much longer.

        Raises:
            Problem: 404, 409 (it is revoked or has expired) or 503: then nobody knows which secret is the key's; rotate
                again.
        """
        secret = secrets.token_urlsafe(32)

        def rotated(now: float, old: ApiKey) -> ApiKey:
            if not _lives(old, now):
                raise Problem(409, "the key is revoked or has expired: make another")
            return replace(
                old,
                hash=self._hash(secret).hex(),
                rotated_at=now,
                former_hash=old.hash if grace_s else "",
                former_until=now + grace_s if grace_s else 0.0,
            )

        return await self._change(key, rotated), _text(key, secret)

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
                    self._take(entry)
                    return old
                value = encode(new)
                try:
                    revision = await bucket.update(api_key(key), value, entry.revision)
                except WrongRevision:
                    continue
                self._take(Entry(api_key(key), value, revision, 0.0))
                return new
        except BusUnavailable:
            raise bus_down() from None
        raise Problem(503, "others are changing that key; try again", retry_after_s=1)

    async def end_session(self, session: str, until: float) -> None:
        """That session is over, on every gateway. Raises ``Problem`` 503."""
        value = encode(SessionEnd(session=session, until=until))
        try:
            await self._bus.bucket(KEYS.name).put(session_end(session), value)
        except BusUnavailable:
            raise bus_down() from None
        self._ended[session] = until

    # --- what is written down now and then ---------------------------------------------------------------------------

    async def keep_books(self) -> None:
        """Write down when keys were used, and forget ended sessions that would have ended by now; until cancelled."""
        while True:
            await self._clock.sleep(USES_S)
            self._tell_ends()
            try:
                await self._write_uses()
                await self._forget_sessions()
            except BusError as error:
                _LOG.info("uses of keys are written down later", error=type(error).__name__)

    def _tell_ends(self) -> None:
        before, self._ends_seen = self._ends_seen, self._clock.wall()
        for known in self._known.values():
            ends = (known.key.expires_at, known.key.former_until)
            if any(end is not None and before < end <= self._ends_seen for end in ends):
                self.on_end(known.key.id)

    async def _write_uses(self) -> None:
        for key, known in list(self._known.items()):
            if known.used_at > self._written.get(key, 0.0):
                at = known.used_at
                await self._bus.bucket(KEYS.name).put(key_use(key), encode(KeyUse(key=key, at=at)))
                self._written[key] = at

    async def _forget_sessions(self) -> None:
        now = self._clock.wall()
        for session, until in list(self._ended.items()):
            # An hour more: clocks of gateways differ, and one that is behind would take the session for a good one.
            if now > until + 3600.0:
                await self._bus.bucket(KEYS.name).purge(session_end(session))
                del self._ended[session]


async def any_key(bus: Bus, clock: Clock) -> bool:
    """Whether the bucket has a key that is good now. Reads it all, once."""
    async for batch in bus.bucket(KEYS.name).follow("key.*"):
        for entry in batch.entries:
            key = decoded(entry, ApiKey)
            if key is not None and _lives(key, clock.wall()):
                return True
        if batch.caught_up:
            return False
    return False


def _lives(key: ApiKey, now: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def _text(key: str, secret: str) -> str:
    return f"gf_{key}_{secret}"
