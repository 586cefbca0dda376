"""An index over the archive: which jobs there are, newest first, by state, model and task. In SQLite, in a temporary
file that goes with the process, because a million of them would take hundreds of megabytes of a gateway's memory.

It holds places, not records: those are read from the archive when a page shows them. Blocking calls of microseconds:
rows are found by index, and what one query may look at is bounded.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from gateway.index import MAX_LOOKED_AT, Filters, Place
from gateway.stored import NOTHING, Kept, Stored
from shared.messages import TERMINAL

#: SQLite's page cache in KiB: the memory that the index may take.
_CACHE_KIB = 16_384
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, tenant INT, state INT, model INT, task INT, created_at REAL, kept INT, inputs TEXT
) WITHOUT ROWID;
CREATE INDEX by_tenant ON jobs (tenant, created_at);
CREATE INDEX by_state ON jobs (tenant, state, created_at);
CREATE INDEX by_model ON jobs (tenant, model, created_at);
CREATE INDEX by_task ON jobs (tenant, task, created_at);
CREATE TABLE deleted (id TEXT PRIMARY KEY, tenant INT) WITHOUT ROWID;
"""
_COLUMNS = ("state", "model", "task")


class Retained(Struct, frozen=True, kw_only=True):
    """What the index keeps of a record."""

    id: str
    tenant: str
    state: str
    model: str
    task: str
    created_at: float
    kept: Kept = NOTHING


class RetainedIndex:
    """The index. ``len`` is how many jobs it holds; ``stored`` is told what is kept because of them."""

    def __init__(self, stored: Stored | None = None) -> None:
        self._stored, self._alone = (Stored(), True) if stored is None else (stored, False)
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.executescript(_SCHEMA)
        #: Tenants, states, models and tasks as small numbers.
        self._words: dict[str, int] = {}
        self._tenants: dict[int, str] = {}
        self._counts: Counter[tuple[str, int, int]] = Counter()
        self._size = 0

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
        if self._alone:
            self._stored.close()

    def __len__(self) -> int:
        return self._size

    def add(self, jobs: Iterable[Retained]) -> None:
        """These are in the archive, except those that are known to be deleted."""
        new = {job.id: job for job in jobs}
        for table in ("jobs", "deleted"):
            for known in self._among(table, list(new)):
                del new[known]
        rows = []
        for job in new.values():
            tenant, words = self._word(job.tenant), [self._word(job.state), self._word(job.model), self._word(job.task)]
            self._tenants[tenant] = job.tenant
            self._stored.add(job.tenant, job.kept)
            inputs = " ".join(f"{sha256}:{size}" for sha256, size in job.kept.inputs.items()) or None
            rows.append((job.id, tenant, *words, job.created_at, job.kept.outputs, inputs))
            for column, word in zip(_COLUMNS, words, strict=True):
                self._counts[column, tenant, word] += 1
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._db.execute("COMMIT")
        self._size += len(rows)

    def remove(self, job: str) -> None:
        """It is not in the archive any more."""
        row = self._db.execute(
            "DELETE FROM jobs WHERE id = ? RETURNING tenant, kept, inputs, state, model, task", (job,)
        ).fetchone()
        if row is not None:
            self._size -= 1
            self._stored.remove(self._tenants[row[0]], _kept(row[1], row[2]))
            for column, word in zip(_COLUMNS, row[3:], strict=True):
                self._counts[column, row[0], word] -= 1

    def delete(self, tenant: str, job: str) -> None:
        """There is a tombstone."""
        self.remove(job)
        self._db.execute("INSERT OR IGNORE INTO deleted VALUES (?, ?)", (job, self._word(tenant)))

    def holds(self, job: str) -> bool:
        """Whether that job is archived, or deleted."""
        return any(self._among(table, [job]) for table in ("jobs", "deleted"))

    def clear(self) -> None:
        """The archive was made anew."""
        for tenant, outputs, inputs in self._db.execute("SELECT tenant, kept, inputs FROM jobs"):
            self._stored.remove(self._tenants[tenant], _kept(outputs, inputs))
        self._db.execute("DELETE FROM jobs")
        self._counts.clear()
        self._size = 0

    def following(
        self, tenant: str, filters: Filters, after: Place | None, count: int
    ) -> tuple[list[Place], Place | None]:
        """At most so many places that follow ``after`` in the list's order; and the last place that was looked at, None
        if there are no others."""
        wanted = {"state": list(filters.states)} if filters.states else {}
        wanted |= {"model": [filters.model]} if filters.model else {}
        wanted |= {"task": [filters.task]} if filters.task else {}
        column = min(wanted, key=lambda name: self._count(name, tenant, wanted[name]), default="")
        others = [name for name in wanted if name != column]
        looked_at = count + 1 if not others else MAX_LOOKED_AT
        ascending = filters.ascending
        streams = [self._rows(tenant, column, word, after, looked_at, ascending) for word in wanted.get(column, [""])]
        merged = heapq.merge(*streams, key=lambda row: row[:2], reverse=not ascending)
        allowed = [(2 + _COLUMNS.index(name), {self._words.get(word) for word in wanted[name]}) for name in others]
        found: list[Place] = []
        last: Place | None = None
        for row in islice(merged, looked_at):
            if len(found) == count:
                return found, last
            last = Place(row[0], row[1])
            if all(row[index] in words for index, words in allowed):
                found.append(last)
        more = last is not None and next(self._rows(tenant, "", "", last, 1, ascending), None) is not None
        return found, last if more else None

    def _rows(
        self, tenant: str, column: str, word: str, after: Place | None, count: int, ascending: bool
    ) -> Iterator[tuple[float, str, int, int, int]]:
        where, values = ["tenant = ?"], [self._words.get(tenant, -1)]
        if column:
            where.append(f"{column} = ?")
            values.append(self._words.get(word, -1))
        bound: list[float | str] = []
        if after is not None:
            where.append(f"(created_at, id) {'>' if ascending else '<'} (?, ?)")
            bound = [after.created_at, after.id]
        order = "ASC" if ascending else "DESC"
        return self._db.execute(
            f"SELECT created_at, id, state, model, task FROM jobs INDEXED BY by_{column or 'tenant'} "
            f"WHERE {' AND '.join(where)} ORDER BY created_at {order}, id {order} LIMIT {count}",
            [*values, *bound],
        )

    def _count(self, column: str, tenant: str, words: list[str]) -> int:
        number = self._words.get(tenant, -1)
        return sum(self._counts[column, number, self._words.get(word, -1)] for word in words)

    def _among(self, table: str, jobs: list[str]) -> list[str]:
        marks = ", ".join("?" * len(jobs))
        return [row[0] for row in self._db.execute(f"SELECT id FROM {table} WHERE id IN ({marks})", jobs)]

    def _word(self, text: str) -> int:
        return self._words.setdefault(text, len(self._words))

    def states(self, tenant: str) -> dict[str, int]:
        """How many of the tenant's jobs it holds, by state."""
        number = self._words.get(tenant, -1)
        counted = ((state, self._counts["state", number, self._words.get(state, -1)]) for state in TERMINAL)
        return {str(state): count for state, count in counted if count}

    def tenants(self) -> list[str]:
        """Those that have had jobs here."""
        return list(self._tenants.values())


def _kept(outputs: int, inputs: str | None) -> Kept:
    """What the row says."""
    pairs = (word.partition(":") for word in (inputs or "").split())
    return Kept(outputs, {sha256: int(size) for sha256, _, size in pairs})
