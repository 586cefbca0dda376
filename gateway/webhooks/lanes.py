"""Which deliveries are tried next: one lane per receiver, so that a slow one delays nobody else. Pure; time is given.

    put ──▶ waiting in its receiver's lane, until its time ──take──▶ in flight ──▶ told | failed | left
                     ▲                                                    │
                     └──────────────── put (a later time) ────────────────┘

A lane that works has ``PER_RECEIVER`` in flight at once. One whose last try failed is *down*: it has a single one in
flight, a probe, and rests between probes, longer each time; so a receiver that is away costs a connection now and then
however much waits for it, and what waits is not used up by tries that cannot succeed. What waits too long in a lane
that is down expires. When a probe succeeds, all that waits there is due at once. A lane that has never worked has one
in flight too. All lanes that are down together get at most half of ``IN_ALL``, and all of one owner at most a quarter:
neither receivers that hang, nor an owner who names a new one each time, can take what the others need.

Every operation costs the logarithm of what waits, but for a receiver's return, which costs what waits for it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from dataclasses import dataclass

PER_RECEIVER = 4
IN_ALL = 256
_OF_DOWN, _OF_OWNER = 2, 4
FIRST_REST_S = 2.0
LONGEST_REST_S = 300.0


class _Lane:
    def __init__(self, owner: str, receiver: str) -> None:
        self.owner = owner
        self.receiver = receiver
        #: (due, turn, key) and (until, turn, key); an entry counts if the key's item has that turn.
        self.waiting: list[tuple[float, int, str]] = []
        self.expiring: list[tuple[float, int, str]] = []
        self.keys: set[str] = set()
        self.in_flight: set[str] = set()
        self.failures = 0
        self.worked = False
        #: It was ready, found no room, and is looked at when there is some.
        self.blocked = False
        self.rest_until = float("-inf")
        #: When ``take`` looks at it next, and the stamp of that entry.
        self.armed: float | None = None
        self.stamp = 0

    @property
    def down(self) -> bool:
        return self.failures > 0

    @property
    def empty(self) -> bool:
        return not (self.keys or self.in_flight)


@dataclass(slots=True)
class Item:
    """A delivery that waits.

    Attributes:
        lane: where.
        due: no earlier.
        until: it expires then, if its receiver is down.
        held: another gateway is at it, or was: nothing but time makes it due.
    """

    lane: _Lane
    due: float
    until: float
    held: bool
    turn: int


class Lanes:
    """The queues of one gateway, by receiver."""

    def __init__(self, per_receiver: int = PER_RECEIVER, in_all: int = IN_ALL) -> None:
        self._per_receiver = per_receiver
        self._in_all = in_all
        self._items: dict[str, Item] = {}
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._flying: dict[str, _Lane] = {}
        #: In flight in lanes that are down.
        self._probes = 0
        self._of_owner: Counter[str] = Counter()
        #: (when, stamp, lane) of lanes to look at; and lanes that were ready and found no room: for probes, or
        #: among their owner's.
        self._ready: list[tuple[float, int, _Lane]] = []
        self._blocked: deque[_Lane] = deque()
        self._waiting_owner: dict[str, deque[_Lane]] = {}
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def in_flight(self) -> int:
        """How many are being tried."""
        return len(self._flying)

    def is_flying(self, key: str) -> bool:
        """Whether that one is being tried."""
        return key in self._flying

    def is_down(self, owner: str, receiver: str) -> bool:
        """Whether its last try failed."""
        lane = self._lanes.get((owner, receiver))
        return lane is not None and lane.down

    # --- what waits --------------------------------------------------------------------------------------------------

    def put(self, key: str, owner: str, receiver: str, due: float, until: float, *, held: bool = False) -> None:
        """It waits until ``due``; replaces what was said of it before. One in flight stays there.

        Args:
            receiver: of that owner; another owner's is another.
        """
        if key in self._flying:
            return
        self.drop(key)
        lane = self._lanes.get((owner, receiver))
        if lane is None:
            lane = self._lanes[owner, receiver] = _Lane(owner, receiver)
        item = Item(lane, due, until, held, next(self._count))
        self._items[key] = item
        lane.keys.add(key)
        heapq.heappush(lane.waiting, (due, item.turn, key))
        heapq.heappush(lane.expiring, (until, item.turn, key))
        self._compact(lane)
        self._arm(lane)

    def drop(self, key: str) -> None:
        """It waits no more. One in flight stays there."""
        item = self._items.pop(key, None)
        if item is not None:
            item.lane.keys.discard(key)
            self._arm(item.lane)

    def take(self, now: float) -> list[str]:
        """What is to be tried now; it is in flight from now on."""
        taken: list[str] = []
        while self._ready and self._ready[0][0] <= now and len(self._flying) < self._in_all:
            _, stamp, lane = heapq.heappop(self._ready)
            if lane.stamp != stamp:
                continue
            lane.armed = None
            if lane.empty:
                if self._lanes.get((lane.owner, lane.receiver)) is lane:
                    del self._lanes[lane.owner, lane.receiver]
                continue
            if lane.down and self._probes >= self._in_all // _OF_DOWN:
                lane.blocked = True
                self._blocked.append(lane)
                continue
            if self._of_owner[lane.owner] >= self._in_all // _OF_OWNER:
                lane.blocked = True
                self._waiting_owner.setdefault(lane.owner, deque()).append(lane)
                continue
            _, _, key = heapq.heappop(lane.waiting)
            del self._items[key]
            lane.keys.discard(key)
            lane.in_flight.add(key)
            self._flying[key] = lane
            self._probes += lane.down
            self._of_owner[lane.owner] += 1
            taken.append(key)
            self._arm(lane)
        return taken

    def next_at(self) -> float | None:
        """When ``take`` may have something, if nothing else happens."""
        if len(self._flying) >= self._in_all:
            return None
        while self._ready and self._ready[0][2].stamp != self._ready[0][1]:
            heapq.heappop(self._ready)
        return self._ready[0][0] if self._ready else None

    # --- what became of a try ----------------------------------------------------------------------------------------

    def told(self, key: str) -> None:
        """The receiver took it."""
        lane = self._land(key)
        if lane is not None:
            self.up(lane.owner, lane.receiver)

    def failed(self, key: str, now: float, rest_s: float = 0.0) -> list[str]:
        """The receiver did not take it, and wants to be left alone for at least ``rest_s``. What has waited too long
        for it is dropped and returned."""
        lane = self._land(key)
        if lane is None:
            return []
        if not lane.down:
            self._probes += len(lane.in_flight)
        lane.failures += 1
        rest = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(lane.failures - 1, 16))
        lane.rest_until = now + max(rest, rest_s)
        expired = self._expired(lane, now)
        for gone in expired:
            self.drop(gone)
        self._arm(lane)
        return expired

    def left(self, key: str) -> None:
        """There was no try: somebody else has it, or the bus was away."""
        lane = self._land(key)
        if lane is not None:
            self._arm(lane)

    def up(self, owner: str, receiver: str) -> None:
        """The receiver takes webhooks, as this gateway or another has seen."""
        lane = self._lanes.get((owner, receiver))
        if lane is None:
            return
        lane.worked = True
        if lane.down:
            self._probes -= len(lane.in_flight)
            lane.failures = 0
            lane.rest_until = float("-inf")
            lane.blocked = False
            for key in lane.keys:
                item = self._items[key]
                if not item.held:
                    item.due = float("-inf")
            lane.waiting = [(self._items[key].due, self._items[key].turn, key) for key in lane.keys]
            heapq.heapify(lane.waiting)
            self._unblock()
        self._arm(lane)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _land(self, key: str) -> _Lane | None:
        lane = self._flying.pop(key, None)
        if lane is not None:
            lane.in_flight.discard(key)
            self._probes -= lane.down
            self._of_owner[lane.owner] -= 1
            if not self._of_owner[lane.owner]:
                del self._of_owner[lane.owner]
            self._unblock()
            self._let_owner(lane.owner)
        return lane

    def _let_owner(self, owner: str) -> None:
        """There is room for one more of that owner's lanes."""
        waiting = self._waiting_owner.get(owner)
        while waiting:
            lane = waiting.popleft()
            lane.blocked = False
            self._arm(lane)
            if lane.armed is not None:
                break
        if not waiting:
            self._waiting_owner.pop(owner, None)

    def _unblock(self) -> None:
        room = self._in_all // _OF_DOWN - self._probes
        while self._blocked and room > 0:
            lane = self._blocked.popleft()
            lane.blocked = False
            self._arm(lane)
            room -= lane.armed is not None

    def _expired(self, lane: _Lane, now: float) -> list[str]:
        found: list[str] = []
        spared: list[tuple[float, int, str]] = []
        while lane.expiring and lane.expiring[0][0] <= now:
            entry = heapq.heappop(lane.expiring)
            item = self._items.get(entry[2])
            if item is not None and item.turn == entry[1]:
                if item.held:
                    spared.append(entry)
                else:
                    found.append(entry[2])
        for entry in spared:
            heapq.heappush(lane.expiring, entry)
        return found

    def _arm(self, lane: _Lane) -> None:
        """Say when the lane may have something next, or may be forgotten: when it is of no more use."""
        while lane.waiting and not self._counts(lane.waiting[0]):
            heapq.heappop(lane.waiting)
        at: float | None = None
        if lane.empty:
            at = lane.rest_until
        elif lane.waiting and not lane.blocked and len(lane.in_flight) < self._at_once(lane):
            at = max(lane.waiting[0][0], lane.rest_until)
        if at == lane.armed:
            return
        lane.armed, lane.stamp = at, next(self._count)
        if at is not None:
            heapq.heappush(self._ready, (at, lane.stamp, lane))
            if len(self._ready) > 4 * len(self._lanes) + 64:
                self._ready = [entry for entry in self._ready if entry[2].stamp == entry[1]]
                heapq.heapify(self._ready)

    def _at_once(self, lane: _Lane) -> int:
        return self._per_receiver if lane.worked and not lane.down else 1

    def _counts(self, entry: tuple[float, int, str]) -> bool:
        item = self._items.get(entry[2])
        return item is not None and item.turn == entry[1]

    def _compact(self, lane: _Lane) -> None:
        """Entries that count no more are at most as many as those that do."""
        for heap in (lane.waiting, lane.expiring):
            if len(heap) > 2 * len(lane.keys) + 64:
                heap[:] = [entry for entry in heap if self._counts(entry)]
                heapq.heapify(heap)
