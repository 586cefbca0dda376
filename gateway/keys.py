"""API keys: ``gf_<id>_<secret>``. The bucket ``keys`` holds what each may do and an HMAC of its secret, never that
itself; every gateway follows it, so that a key is known, or revoked, everywhere as soon as a message arrives.

The HMAC's key is derived from the deployment's secret (a pepper): who reads the bucket can neither use nor try keys. A
plain HMAC does, where passwords would need a slow one, because a secret here has 256 random bits.

A request costs one look-up and one HMAC, whether the key is right, wrong or unknown, and asks the bus nothing.
``gateway.key_book`` writes what is read here.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from gateway.auth import Caller, Role
from gateway.entries import decoded
from gateway.problems import not_found
from shared.bus import Batch, Entry
from shared.clock import Clock
from shared.errors import SettingsError
from shared.messages import DEFAULT_TENANT, ApiKey, KeyEntry, KeyUse, SessionEnd
from shared.secrets import Mac, derive
from shared.telemetry import log

_LOG = log(__name__)

_TEXT = re.compile(r"gf_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
#: The id of the admin key of the settings.
BOOTSTRAP = "bootstrap"


def text_of(key: str, secret: str) -> str:
    """The key as its owner has it."""
    return f"gf_{key}_{secret}"


def is_good(key: ApiKey, now: float) -> bool:
    """Whether it is neither revoked nor has expired."""
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


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

    Attributes:
        read: all keys have been read once: one that is not known now does not exist.
        on_end: told the ids of keys that have ended, or a secret of theirs, and of sessions: at once when they are
            revoked, rotated or ended, and of keys when ``tell_ends`` is called after their time was over.
        ended: sessions that were ended before their time, and when that would have been.

    Raises:
        SettingsError: the admin key cannot be one.
    """

    def __init__(self, clock: Clock, secret: str, admin_key: str = "") -> None:
        if _TEXT.fullmatch(admin_key):
            raise SettingsError("GENFLEET_ADMIN_KEY: a key that a gateway has made is known by it, and not from here")
        self._clock = clock
        self._pepper = Mac(derive(secret, "api-keys/1"))
        self._admin_key = admin_key
        # What an unknown id is compared with, so that it costs what a known one does.
        self._nobody = self._of(ApiKey(id="", tenant=DEFAULT_TENANT, role=Role.USER, hash="00" * 32, revoked_at=0.0), 0)
        self.on_end: Callable[[Set[str]], None] = lambda _: None
        self._ends_told = clock.wall()
        self.read = False
        self._forget_all()

    def _forget_all(self) -> None:
        self._known: dict[str, _Known] = {}
        self._written: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        if self._admin_key:
            own = ApiKey(id=BOOTSTRAP, tenant=DEFAULT_TENANT, role=Role.ADMIN, hash=self.hash(self._admin_key).hex())
            self._known[BOOTSTRAP] = self._of(own, 0)

    def hash(self, secret: str) -> bytes:
        """What is kept of a key's secret."""
        return self._pepper.digest(secret.encode())

    # --- who asks ----------------------------------------------------------------------------------------------------

    def verify(self, text: str) -> Caller | None:
        """Whose key this is; None if it is nobody's, or no longer."""
        found = _TEXT.fullmatch(text)
        if found is None:
            known, digest = self._known.get(BOOTSTRAP, self._nobody), self.hash(text)
        else:
            known, digest = self._known.get(found[1], self._nobody), self.hash(found[2])
        now = self._clock.wall()
        right = hmac.compare_digest(digest, known.hash)
        was_right = hmac.compare_digest(digest, known.former) and now < known.key.former_until
        if not (right or was_right) or not is_good(known.key, now):
            return None
        known.used_at = now
        return known.caller

    def fingerprint(self, text: str) -> tuple[str, str]:
        """The id of a valid key and a word for its very secret: what a session is bound to."""
        found = _TEXT.fullmatch(text)
        key, secret = (BOOTSTRAP, text) if found is None else (found[1], found[2])
        return key, self.hash(secret)[:8].hex()

    def of_session(self, key: str, fingerprint: str, session: str) -> Caller | None:
        """Whose session this is that was begun with that key; None if it was ended or the key is no longer good."""
        known = self._known.get(key)
        now = self._clock.wall()
        if known is None or session in self.ended or not is_good(known.key, now):
            return None
        good = known.hash[:8].hex() == fingerprint
        was_good = known.former[:8].hex() == fingerprint and now < known.key.former_until
        if not (good or was_good):
            return None
        known.used_at = now
        return known.caller

    # --- what is known of them ---------------------------------------------------------------------------------------

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

    def unwritten(self) -> Iterable[KeyUse]:
        """Uses that nobody has written down yet."""
        return [
            KeyUse(key=key, at=known.used_at)
            for key, known in self._known.items()
            if known.used_at > self._written.get(key, 0.0)
        ]

    def now(self) -> float:
        """By the clock that keys' ends are judged by."""
        return self._clock.wall()

    def check(self, key: str) -> None:
        """Raises ``Problem`` 404 unless there is such a key, or there may be."""
        if self.read and (key == BOOTSTRAP or key not in self._known):
            raise not_found("no such key")

    def tell_ends(self) -> None:
        """Tell of what has ended by itself since this was called last."""
        before, self._ends_told = self._ends_told, self._clock.wall()
        self._tell(
            {
                known.key.id
                for known in self._known.values()
                for end in (known.key.expires_at, known.key.former_until)
                if end is not None and before < end <= self._ends_told
            }
        )

    def over(self, caller: Caller) -> bool:
        """Whether what the caller came with has ended since: its own time, its session, or its key."""
        known, now = self._known.get(caller.by), self._clock.wall()
        out_of_time = caller.until is not None and now >= caller.until
        return out_of_time or caller.session in self.ended or (known is not None and not is_good(known.key, now))

    # --- what the follower brings ------------------------------------------------------------------------------------

    def on_keys(self, batch: Batch) -> None:
        """Entries of ``keys``."""
        if batch.reset:
            self._forget_all()
        self._tell({self._take(entry) for entry in batch.entries})
        self.read = self.read or batch.caught_up

    def take(self, entry: Entry) -> None:
        """An entry that was just written, or read."""
        self._tell({self._take(entry)})

    def session_ended(self, session: str, until: float) -> None:
        """That session was ended; by itself it would have been then."""
        self.ended[session] = until
        self._tell({session})

    def _tell(self, ended: set[str]) -> None:
        ended.discard("")
        if ended:
            self.on_end(ended)

    def _take(self, entry: Entry) -> str:
        """What has ended by the entry; empty: nothing."""
        found: KeyEntry | None = decoded(entry, KeyEntry)  # type: ignore[arg-type]
        match found:
            case ApiKey():
                return self._take_key(found, entry.revision)
            case KeyUse(key=used, at=at):
                self._written[used] = max(at, self._written.get(used, 0.0))
            case SessionEnd(session=session, until=until):
                self.ended[session] = until
                return session
            case None if entry.key.startswith("key."):  # a marker, or what cannot be read
                self._known.pop(entry.key.removeprefix("key."), None)
        return ""

    def _take_key(self, key: ApiKey, revision: int) -> str:
        before = self._known.get(key.id)
        if before is not None and before.revision >= revision:
            return ""
        try:
            now = self._known[key.id] = self._of(key, revision)
        except ValueError as error:
            _LOG.error("a key's role or hash is none: it opens nothing", key=key.id, error=str(error))
            self._known.pop(key.id, None)
            return key.id
        if before is not None:
            now.used_at = before.used_at
            if key.revoked_at is not None or (key.hash != before.key.hash and not key.former_hash):
                return key.id
        return ""

    def _of(self, key: ApiKey, revision: int) -> _Known:
        caller = Caller(tenant=key.tenant, role=Role(key.role), by=key.id)
        former = bytes.fromhex(key.former_hash) if key.former_hash else bytes(32)
        return _Known(key, revision, caller, bytes.fromhex(key.hash), former)
