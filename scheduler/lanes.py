"""The order within one queue: which lane is next by its tenant's share, and which by age.

Two heaps of lanes, so that a decision costs the logarithm of the number of tenants and of a lane's jobs. Both are lazy:
an entry is live while it is its lane's, and it never stands behind where its lane belongs, so what comes to the top is
compared with how its lane stands now and put back if it has become worse. What makes a lane better (a better first job,
a charge given back) enters it anew.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace

from scheduler.entities import Job
from scheduler.queues import AgedEntry, FairEntry, Lane, Place, Queue

Jobs = dict[str, Job]


def live(entry: Place, jobs: Jobs) -> bool:
    """Whether the job still stands there."""
    job = jobs.get(entry[1])
    return job is not None and job.place is entry


def head(lane: Lane, jobs: Jobs) -> Place | None:
    """The lane's first job."""
    while lane.heap and not live(lane.heap[0], jobs):
        heappop(lane.heap)
    if not lane.wary:
        return lane.heap[0] if lane.heap else None
    return min(lane.heap[0], lane.wary[0]) if lane.heap else lane.wary[0]


def join(lane: Lane, job: Job, place: Place, jobs: Jobs) -> None:
    """The job stands in the lane from now on."""
    job.place = place
    lane.live += 1
    lane.queue.live += 1
    if job.wary:
        insort(lane.wary, place)
    else:
        heappush(lane.heap, place)
    if lane.fair is None or lane.aged is None or place < lane.fair[1] or place < lane.aged[0]:
        enter(lane, jobs)


def leave(lane: Lane, job: Job, place: Place, jobs: Jobs) -> None:
    """The job stands in the lane no more."""
    job.place = None
    lane.live -= 1
    lane.queue.live -= 1
    if job.wary:
        del lane.wary[bisect_left(lane.wary, place)]
    elif lane.heap[0] is place:
        heappop(lane.heap)
    elif len(lane.heap) > 2 * lane.live + 64:
        lane.heap = [entry for entry in lane.heap if live(entry, jobs)]
        heapify(lane.heap)
    if not lane.live:
        withdraw(lane)


def enter(lane: Lane, jobs: Jobs) -> None:
    """The lane has its turns, at its present standing."""
    first = None if lane.tenant.full else head(lane, jobs)
    if first is None:
        withdraw(lane)
        return
    queue = lane.queue
    bound = 2 * len(queue.lanes) + 64
    lane.fair = (lane.key, first, lane)
    lane.aged = (first, lane)
    heappush(queue.fair, lane.fair)
    heappush(queue.aged, lane.aged)
    if len(queue.fair) > bound:
        queue.fair = [entry for entry in queue.fair if entry[2].fair is entry]
        heapify(queue.fair)
    if len(queue.aged) > bound:
        queue.aged = [entry for entry in queue.aged if entry[1].aged is entry]
        heapify(queue.aged)


def withdraw(lane: Lane) -> None:
    """The lane has no turns."""
    lane.fair = lane.aged = None


def fairest(queue: Queue, jobs: Jobs, may: Callable[[Job], bool]) -> tuple[float, Job] | None:
    """The job that is next by its tenant's share, of those that ``may`` allows, and its tenant's standing."""
    heap = queue.fair
    passed: list[FairEntry] = []
    found: tuple[float, Job] | None = None
    while heap and found is None:
        entry = heap[0]
        lane = entry[2]
        if lane.fair is not entry:
            heappop(heap)
            continue
        first = head(lane, jobs)
        assert first is not None, "a lane without a job has its turns"
        key = lane.key
        if key > entry[0] or first is not entry[1]:
            lane.fair = (key, first, lane)
            heapreplace(heap, lane.fair)
            continue
        job = _allowed(lane, jobs, may)
        if job is None:
            passed.append(heappop(heap))
        else:
            found = (key, job)
    for entry in passed:
        heappush(heap, entry)
    return found


def oldest(queue: Queue, jobs: Jobs, may: Callable[[Job], bool]) -> Job | None:
    """The job of the smallest rank of all tenants, of those that ``may`` allows."""
    heap = queue.aged
    passed: list[AgedEntry] = []
    found: Job | None = None
    while heap and found is None:
        entry = heap[0]
        lane = entry[1]
        if lane.aged is not entry:
            heappop(heap)
            continue
        first = head(lane, jobs)
        assert first is not None, "a lane without a job has its turns"
        if first is not entry[0]:
            lane.aged = (first, lane)
            heapreplace(heap, lane.aged)
            continue
        found = _allowed(lane, jobs, may)
        if found is None:
            passed.append(heappop(heap))
    for entry in passed:
        heappush(heap, entry)
    return found


def _allowed(lane: Lane, jobs: Jobs, may: Callable[[Job], bool]) -> Job | None:
    """The lane's first job that ``may`` allows."""
    best = lane.heap[0] if lane.heap else None
    for entry in lane.wary:
        if best is not None and best < entry:
            break
        if may(jobs[entry[1]]):
            best = entry
            break
    return None if best is None else jobs[best[1]]
