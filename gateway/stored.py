"""How many bytes are kept of each tenant: a running sum over what this gateway hears of anyway.

What counts: every output of a job that is retained, and every input file once, however many of the tenant's jobs use
it, for as long as one does; a file that was uploaded by itself, for the day and a quarter that it is kept if no job
uses it. Inputs and their uses lie in SQLite, in a temporary file: a million retained jobs would take too much memory.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct

from shared.messages import Input, JobRecord, Output
from shared.topology import UPLOADS

_CACHE_KIB = 2048
_NONE: dict[str, int] = {}


class Kept(Struct, frozen=True):
    """Of one job: bytes of its outputs, and of its input files by their SHA-256."""

    outputs: int
    inputs: Mapping[str, int]


NOTHING = Kept(0, _NONE)


def kept(record: JobRecord) -> Kept:
    """What is kept because of that job."""
    request = record.request
    inputs = _NONE
    if request.image or request.last_image or request.video or request.mask or request.references:
        inputs = files(request.inputs())
    return Kept(size_of(record.outputs), inputs)


def size_of(outputs: Iterable[Output]) -> int:
    """Bytes of those files."""
    return sum(made.size for made in outputs)


def files(inputs: Mapping[str, Input]) -> dict[str, int]:
    """The sizes of input files that lie in the store, by SHA-256."""
    return {given.sha256: given.size for given in inputs.values() if given.key}


class Stored:
    """The sums."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.execute("CREATE TABLE inputs (name TEXT PRIMARY KEY, size INT, uses INT) WITHOUT ROWID")
        self._bytes: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()
        #: Uploads of late: when each is no longer one, on this process's monotonic clock.
        self._until: dict[tuple[str, str], float] = {}
        self._ends: list[tuple[float, str, str]] = []

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def bytes_of(self, tenant: str) -> int:
        """How many bytes are kept of the tenant."""
        return self._bytes[tenant]

    def files_of(self, tenant: str) -> int:
        """How many files that came by themselves are kept of the tenant."""
        return self._uploads[tenant]

    def has(self, tenant: str, sha256: str) -> bool:
        """Whether that input is counted already."""
        return bool(self._db.execute("SELECT 1 FROM inputs WHERE name = ?", (f"{tenant}.{sha256}",)).fetchone())

    def new(self, tenant: str, inputs: Mapping[str, int]) -> int:
        """Bytes of those inputs that are not counted yet."""
        return sum(size for sha256, size in inputs.items() if not self.has(tenant, sha256))

    def add(self, tenant: str, what: Kept) -> None:
        """It is kept from now on."""
        if what.outputs:
            self._bytes[tenant] += what.outputs
        for sha256, size in what.inputs.items():
            self._hold(tenant, sha256, size)

    def remove(self, tenant: str, what: Kept) -> None:
        """It is no longer kept, for this reason."""
        if what.outputs:
            self._bytes[tenant] -= what.outputs
        for sha256 in what.inputs:
            self._let_go(tenant, sha256)
        if not self._bytes[tenant]:
            del self._bytes[tenant]

    def changed(self, tenant: str, before: tuple[Output, ...], after: tuple[Output, ...]) -> None:
        """A job may have other outputs now."""
        if before != after:
            self._bytes[tenant] += size_of(after) - size_of(before)

    # --- uploads -----------------------------------------------------------------------------------------------------

    def uploaded(self, tenant: str, sha256: str, size: int, at: float) -> None:
        """It was stored by itself then, by this process's monotonic clock."""
        if (tenant, sha256) not in self._until:
            self._hold(tenant, sha256, size)
            self._uploads[tenant] += 1
        assert UPLOADS.ttl_s is not None
        self._until[tenant, sha256] = until = at + UPLOADS.ttl_s
        heapq.heappush(self._ends, (until, tenant, sha256))

    def forget_uploads(self, now: float) -> None:
        """Let go of those that the sweep has removed by now, if no job uses them."""
        while self._ends and self._ends[0][0] <= now:
            _, tenant, sha256 = heapq.heappop(self._ends)
            until = self._until.get((tenant, sha256))
            if until is not None and until <= now:
                del self._until[tenant, sha256]
                self._let_go(tenant, sha256)
                self._uploads[tenant] -= 1
                if not self._uploads[tenant]:
                    del self._uploads[tenant]

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _hold(self, tenant: str, sha256: str, size: int) -> None:
        (uses,) = self._db.execute(
            "INSERT INTO inputs VALUES (?, ?, 1) ON CONFLICT (name) DO UPDATE SET uses = uses + 1 RETURNING uses",
            (f"{tenant}.{sha256}", size),
        ).fetchone()
        if uses == 1:
            self._bytes[tenant] += size

    def _let_go(self, tenant: str, sha256: str) -> None:
        name = f"{tenant}.{sha256}"
        used = "UPDATE inputs SET uses = uses - 1 WHERE name = ? RETURNING uses, size"
        row = self._db.execute(used, (name,)).fetchone()
        if row is not None and row[0] <= 0:
            self._db.execute("DELETE FROM inputs WHERE name = ?", (name,))
            self._bytes[tenant] -= row[1]
