"""Indexes over the records that a gateway knows, so that no request scans them: lists, and places in the queue.

Pure.
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
from sortedcontainers import SortedList

from shared.errors import InvalidRequest
from shared.messages import JobRecord, State

#: Entries that one page may look at: a rare combination of filters gives short pages, not slow ones.
MAX_LOOKED_AT = 5000


class Place(NamedTuple):
    """Where a job stands in lists: oldest first."""

    created_at: float
    id: str


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a list is to show; empty means any."""

    states: frozenset[str] = frozenset()
    model: str = ""
    task: str = ""
    #: Oldest first, instead of newest first.
    ascending: bool = False


def cursor(place: Place) -> str:
    """The place as an opaque word for a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def from_cursor(word: str) -> Place:
    """The place that ``cursor`` wrote.

    Raises:
        InvalidRequest: it did not write this.
    """
    try:
        raw = base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
        return Place(*msgspec.json.decode(raw, type=tuple[float, str]))
    except ValueError as error:  # msgspec's, binascii's and UnicodeDecodeError are ValueErrors
        raise InvalidRequest("not a cursor that this server gave", "after") from error


class JobIndex:
    """Jobs per tenant, newest first, by state, model and task."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str, str, str], SortedList] = defaultdict(SortedList)
        self.states: Counter[str] = Counter()

    def add(self, record: JobRecord) -> None:
        self._put(_entries(record))
        self.states[record.state] += 1

    def remove(self, record: JobRecord) -> None:
        self._drop(_entries(record))
        self.states[record.state] -= 1

    def move(self, before: JobRecord, after: JobRecord) -> None:
        """The record changed: nearly always its state alone."""
        for old, new in zip(_entries(before), _entries(after), strict=True):
            if old != new:
                self._drop((old,))
                self._put((new,))
        self.states[before.state] -= 1
        self.states[after.state] += 1

    def of(self, tenant: str) -> dict[str, int]:
        """How many jobs the tenant has, by state."""
        counted = {str(state): len(self._lists.get((tenant, "state", str(state)), ())) for state in State}
        return {state: count for state, count in counted.items() if count}

    def tenants(self) -> list[str]:
        """Those that have jobs."""
        return [tenant for tenant, kind, _ in self._lists if kind == "all"]

    def _put(self, entries: tuple[_Entry, ...]) -> None:
        for key, place in entries:
            self._lists[key].add(place)

    def _drop(self, entries: tuple[_Entry, ...]) -> None:
        for key, place in entries:
            places = self._lists[key]
            places.remove(place)
            if not places:
                del self._lists[key]

    def following(self, tenant: str, filters: Filters, after: Place | None) -> Iterator[Place]:
        """Places that follow ``after`` in the list's order: of the narrowest index that holds all wanted jobs, so the
        caller still has to look at each."""
        names: list[list[tuple[str, str, str]]] = [[(tenant, "all", "")]]
        if filters.states:
            names.append([(tenant, "state", state) for state in filters.states])
        if filters.model:
            names.append([(tenant, "model", filters.model)])
        if filters.task:
            names.append([(tenant, "task", filters.task)])
        candidates = [[self._lists[key] for key in keys if key in self._lists] for keys in names]
        best = min(candidates, key=lambda lists: sum(len(places) for places in lists))
        if filters.ascending:
            return heapq.merge(*(places.irange(minimum=after, inclusive=(False, True)) for places in best))
        return heapq.merge(
            *(places.irange(maximum=after, inclusive=(True, False), reverse=True) for places in best), reverse=True
        )


#: One job in one list: the list's name (tenant, by what, which) and the job's place in it.
_Entry = tuple[tuple[str, str, str], Place]


def _entries(record: JobRecord) -> tuple[_Entry, ...]:
    tenant = record.tenant
    place = Place(record.created_at, record.id)
    return (
        ((tenant, "all", ""), place),
        ((tenant, "state", str(record.state)), place),
        ((tenant, "model", record.request.model), place),
        ((tenant, "task", record.request.task), place),
    )


_AT_WORKERS = frozenset({State.ASSIGNED, State.RUNNING, State.CANCELLING})


class QueueIndex:
    """Queued jobs by model and tenant, in the order in which a tenant's are served (see ``docs/scheduling.md``)."""

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._queued: dict[str, dict[str, SortedList]] = {}
        self._counts: dict[str, Counter[str]] = {}
        self.priorities: Counter[int] = Counter()
        #: By tenant: jobs that wait, and jobs that workers hold.
        self.waiting: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self._length = 0

    def add(self, record: JobRecord) -> None:
        model, tenant = record.request.model, record.tenant
        if record.state is State.QUEUED:
            lanes = self._queued.setdefault(model, {})
            lane = lanes.get(tenant)
            if lane is None:
                lane = lanes[tenant] = SortedList()
            lane.add(self._order(record))
            self._counts.setdefault(model, Counter())[tenant] += 1
            self.priorities[record.priority] += 1
            self.waiting[tenant] += 1
            self._length += 1
        elif record.state in _AT_WORKERS:
            self.running[tenant] += 1

    def remove(self, record: JobRecord) -> None:
        model, tenant = record.request.model, record.tenant
        if record.state is State.QUEUED:
            lanes = self._queued[model]
            lanes[tenant].remove(self._order(record))
            self._counts[model][tenant] -= 1
            self.priorities[record.priority] -= 1
            self.waiting[tenant] -= 1
            self._length -= 1
            if not lanes[tenant]:
                del lanes[tenant], self._counts[model][tenant]
            if not lanes:
                del self._queued[model], self._counts[model]
        elif record.state in _AT_WORKERS:
            self.running[tenant] -= 1

    def ahead(self, record: JobRecord) -> int:
        """How many queued jobs of its model and tenant go before it: O(log n)."""
        lane = self._queued.get(record.request.model, {}).get(record.tenant)
        return 0 if lane is None else int(lane.bisect_left(self._order(record)))

    def tenants(self, model: str) -> Mapping[str, int]:
        """How many jobs wait for the model, by tenant."""
        return self._counts.get(model, {})

    def __len__(self) -> int:
        return self._length

    def _order(self, record: JobRecord) -> tuple[float, str]:
        return record.created_at - record.priority * self._ageing_s, record.id
