"""The bus port: what genfleet needs of a message bus, and nothing that only one bus has.

Two implementations pass the one conformance suite in ``tests/contract/test_bus.py``: ``shared.nats_bus`` (NATS
JetStream) and the in-memory one that tests use, which models redelivery, duplicates, restarts and lost answers.

Keys and subjects are checked before they leave the process (``InvalidKey``): a bad one would close the connection.
Every call is bounded in time; one that is not answered raises ``BusUnavailable`` and *may have happened*.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from shared.errors import InvalidKey

#: Tokens separated by dots. Bounded: an overlong subject makes the server close the connection for good.
KEY = re.compile(r"[A-Za-z0-9_=-]{1,128}(\.[A-Za-z0-9_=-]{1,128}){0,7}")
#: A filter is a key in which a token may be ``*`` and the last may be ``>``.
FILTER = re.compile(r"(([A-Za-z0-9_=-]{1,128}|\*)\.){0,7}([A-Za-z0-9_=-]{1,128}|\*|>)")
MAX_KEY = 512


def check_key(key: str) -> str:
    """The key, if the bus can carry it.

    Raises:
        InvalidKey: it cannot.
    """
    if len(key) > MAX_KEY or not KEY.fullmatch(key):
        raise InvalidKey(f"not a key: {key[:80]!r}")
    return key


def check_filter(keys: str) -> str:
    """The filter, if the bus can carry it.

    Raises:
        InvalidKey: it cannot.
    """
    if len(keys) > MAX_KEY or not FILTER.fullmatch(keys):
        raise InvalidKey(f"not a filter: {keys[:80]!r}")
    return keys


class Entry(Struct, frozen=True, gc=False):
    """A key's last value.

    Attributes:
        value: None for a deletion marker.
        revision: the bucket's sequence number of this write; grows over the whole bucket.
        timestamp: the broker's clock at the write, in seconds since 1970. Compare it with other entries' only.
    """

    key: str
    value: bytes | None
    revision: int
    timestamp: float


class Batch(Struct, frozen=True):
    """Changes of a bucket in order.

    Attributes:
        caught_up: nothing more was pending when this was read; sent at least once, even with no entries.
        reset: the bucket was made anew (a memory bucket after a broker restart): what the follower knew of earlier
            keys no longer holds. Comes with the first entries of the new bucket.
    """

    entries: tuple[Entry, ...]
    caught_up: bool = False
    reset: bool = False


class Bucket(Protocol):
    """A key-value bucket with one value per key, compare-and-set, and changes that can be followed."""

    @property
    def name(self) -> str: ...

    async def get(self, key: str) -> Entry | None:
        """The key's last entry (a marker included), or None if it was never written or has expired.

        Raises:
            BusUnavailable: no answer.
        """
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that was never written; the revision.

        Raises:
            KeyExists: it was, even if it is deleted now.
            BucketFull: the bucket's limit is reached; so it is for writes that replace or delete.
            ValueTooLarge: the value is larger than the bucket takes.
            BusUnavailable: no answer: it may have happened.
        """
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Replace the key if ``revision`` is its last; the new revision.

        Raises:
            WrongRevision: it is not.
            BucketFull, BusUnavailable: as in ``create``.
        """
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Write the key whatever it holds; the revision. Raises as ``create``, never KeyExists."""
        ...

    async def delete(self, key: str, revision: int | None = None) -> int:
        """Leave a deletion marker, which ``get`` and followers show; with ``revision`` only if it is the last.

        Raises:
            WrongRevision: it is not.
            BucketFull, BusUnavailable: as in ``create``.
        """
        ...

    async def purge(self, key: str, revision: int | None = None) -> None:
        """Remove the key with no marker left; for buckets that nobody rebuilds a state from. With ``revision`` only if
        it is the last, which spares the bus a look."""
        ...

    def follow(self, keys: str = ">", after: int | None = None) -> AsyncIterator[Batch]:
        """Every key's last entry (or, with ``after``, those of a later revision), then every change, for ever.

        Survives disconnection and broker restarts by itself: it goes on after the last revision it gave. Changes of
        one key may be coalesced to the last. Close it with ``aclose()`` or by cancelling the task that iterates.
        """
        ...

    async def count(self, keys: str = ">") -> int:
        """How many keys match the filter, markers included. Cheap: nothing is read. Raises BusUnavailable."""
        ...

    async def usage(self) -> tuple[int, int]:
        """How many messages and bytes the bucket holds (markers included)."""
        ...


Handler = Callable[[bytes], Awaitable[bytes | None]]


class Subscription(Protocol):
    """A handler's registration on a subject."""

    async def close(self) -> None:
        """No further call is started."""
        ...


class Bus(Protocol):
    """A connection to the message bus."""

    def bucket(self, name: str) -> Bucket:
        """The bucket of that name; ``shared.topology`` lists them. It must have been made by ``topology.ensure``."""
        ...

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask whoever listens on the subject.

        Raises:
            NoResponders: nobody does.
            BusUnavailable: no answer in time.
        """
        ...

    async def publish(self, subject: str, payload: bytes) -> None:
        """Tell whoever listens, at most once; may be lost."""
        ...

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Call the handler with each payload; what it returns (if not None) answers a request. Re-established after
        a reconnection. Calls run concurrently; an exception of the handler is logged and leaves the request
        unanswered."""
        ...

    async def round_trip(self) -> None:
        """A JetStream round trip, for readiness.

        Raises:
            BusUnavailable: no answer.
        """
        ...

    def contact_s(self) -> float:
        """Seconds of unbroken JetStream contact until now; 0.0 while there is none."""
        ...

    async def close(self) -> None:
        """Let go of the connection; never raises because the broker is away."""
        ...
