"""What the scheduler's core knows, with the indexes that keep a decision logarithmic in the number of queued jobs.

    jobs      every open job, by id; those that ended are forgotten, so that memory follows open jobs
    queues    per wish: a lane per tenant, a heap by rank each, under two heaps of lanes (see ``lanes``)
    shares    what each tenant has used, and where that puts its lanes (see ``shares``)
    workers   per name: the last lease, the jobs that are there by the records, the queues it can serve
    free      per queue: the workers that fit and have a slot, longest idle first
    timers    when to look again (see ``timers``)

Nothing here decides. ``decide`` is the only door through which a state changes; this module keeps the indexes true
while it does (``invariants.check`` says what true means). Removal from a heap is lazy: an entry is live while it is
its job's ``place``.

Longer than one page, because these indexes are true only together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from scheduler import lanes
from scheduler.accounts import Accounts
from scheduler.entities import Job, Worker
from scheduler.events import Stream, Summary, Wish
from scheduler.policy import Bar, Memory, Times, Why, fit, rank
from scheduler.queues import Lane, Queue
from shared.fit import part
from shared.messages import State
from shared.pace import Kind, Paces

#: Workers that decide alike about jobs of a wish: of one kind, with the same models loaded; if jobs of it keep away
#: from some worker, each by itself.
Alike = tuple[Wish, Kind, frozenset[str], str]

_ENDED_KEPT = 10_000
_QUEUES_KEPT = 1_024


class CoreState(Accounts):
    """All that the core knows. See the module's text."""

    def __init__(self, times: Times | None = None) -> None:
        super().__init__(times or Times())
        #: Seconds of unbroken contact at the last tick, and since when this process has been awake without a gap.
        self.contact_s = 0.0
        self.awake_since: float | None = None
        self.caught: set[Stream] = set()
        #: Whether this process is the leader: one that is not (a standby) only learns.
        self.leading = True
        self.by_model: dict[str, list[Queue]] = {}
        self.ended: dict[str, int] = {}
        #: How long jobs take where, and what models take of a device's memory.
        self.paces = Paces()
        self.memory: dict[str, Memory] = {}
        self._wishes: dict[Wish, Wish] = {}
        #: An operator holds the queue: nothing is given out.
        self.held = False
        #: Workers by name that an operator has drained, and those in quarantine, whether they are there or not.
        self.drained: set[str] = set()
        self.bars: dict[str, Bar] = {}
        self.counts: dict[State, int] = dict.fromkeys(State, 0)
        # Work of the decision being made.
        self.touched: dict[str, None] = {}
        self.fresh: list[str] = []
        #: Free workers that left a job to others, or to another time: one of each that would decide alike.
        self.waiting_for: dict[Alike, str] = {}
        #: By model and kind, the seconds that loading it took, as a worker said last.
        self._load_s: dict[tuple[str, Kind], float] = {}

    # --- what is known -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """All buckets have been read, and this process leads: decisions may be made."""
        return self.leading and len(self.caught) == len(Stream)

    def trusted(self, lease_s: float) -> bool:
        """Whether silence means something: contact was unbroken, and this process awake, for two lease times."""
        if self.awake_since is None:
            return False
        return min(self.contact_s, self.now - self.awake_since) >= 2 * lease_s

    def slots(self, worker: Worker) -> int:
        """Jobs that the worker can still take: its capacity, less what the records put there, less what it holds
        beyond that (a zombie, or a job whose record is not seen yet)."""
        here = 0
        for name in worker.jobs:
            job = self.jobs[name]
            here += job.reserved == worker.name or job.incarnation == worker.incarnation
        for name, epoch in worker.held - worker.finished:
            known = self.jobs.get(name)
            here += not (known is not None and name in worker.jobs and known.epoch == epoch)
        return (1 if worker.probation else worker.capacity) - here

    def available(self, worker: Worker) -> bool:
        """Whether the worker can be given a job of a wish that it serves."""
        alive = worker.incarnation is not None and not worker.gone and not worker.silent
        return alive and self.now >= max(worker.paused_until, worker.barred_until) and self.slots(worker) > 0

    # --- jobs --------------------------------------------------------------------------------------------------

    def put(self, job: Job, seen: Summary) -> None:
        """The job, new or known, becomes what that revision says."""
        if job.id in self.jobs:
            self._detach(job)
        ran_s = self._ran_s(job, seen.ran_s)
        job.take(seen, self.wish(seen.wish, seen.volume), self.now, self.times)
        self.jobs[job.id] = job
        self.counts[job.state] += 1
        if job.active and job.worker is not None:
            worker = self._home(job.worker)
            worker.jobs.add(job.id)
            self.charge(job, worker)
            self.refresh(worker)
        else:
            self.settle(job, ran_s)

    def forget(self, job: Job, ran_s: float | None = None) -> None:
        """The job has ended or is gone. ``ran_s``: of its last attempt, if the record says."""
        self._detach(job)
        self.settle(job, self._ran_s(job, ran_s), ended=ran_s is not None)
        del self.jobs[job.id]

    def end(self, job: str, revision: int) -> None:
        """Remember for a while that a job ended, against older news of it that is still on its way."""
        self.ended.pop(job, None)
        self.ended[job] = revision
        while len(self.ended) > _ENDED_KEPT:
            del self.ended[next(iter(self.ended))]

    def _detach(self, job: Job) -> None:
        self.counts[job.state] -= 1
        self.dequeue(job)
        self.release(job)
        if job.active and job.worker is not None:
            self._leave(job, job.worker)

    def reserve(self, job: Job, worker: Worker) -> None:
        """The job leaves the queue for that worker while its assignment is being written."""
        self.dequeue(job)
        job.reserved = worker.name
        job.decided = self.now
        worker.jobs.add(job.id)
        self.charge(job, worker)
        self.refresh(worker)

    def release(self, job: Job) -> None:
        """The reservation, if any, is over."""
        if job.reserved is not None:
            name, job.reserved = job.reserved, None
            self._leave(job, name)

    def _leave(self, job: Job, name: str) -> None:
        worker = self.workers.get(name)
        if worker is not None:
            worker.jobs.discard(job.id)
            if worker.gone and not worker.jobs:
                self.wake_worker(worker, self.now + worker.lease_s)
            self.refresh(worker)

    # --- queues ------------------------------------------------------------------------------------------------

    def queue(self, wish: Wish) -> Queue:
        """The queue of that wish, made if need be."""
        found = self.queues.get(wish)
        if found is not None:
            return found
        if len(self.queues) >= _QUEUES_KEPT:
            self._prune()
        made = self.queues[wish] = Queue(wish)
        self.by_model.setdefault(wish.model, []).append(made)
        for worker in self.workers.values():
            if not worker.gone and self._fits(worker, made):
                worker.queues.append(made)
                made.serve(worker)
                if self.available(worker):
                    made.offer(worker)
        return made

    def wish(self, wish: Wish, volume: int) -> Wish:
        """The wish of a job of that volume, as queues tell wishes apart."""
        takes = self.memory.get(wish.model)
        if takes is None:
            return wish
        sized = replace(wish, part=part(volume, takes.largest))
        if len(self._wishes) > 10_000:
            self._wishes.clear()
        return self._wishes.setdefault(sized, sized)

    def learn_memory(self, model: str, takes: Memory | None) -> None:
        """What the model takes of a device's memory; None: nobody knows."""
        if takes == self.memory.get(model):
            return
        if takes is None:
            del self.memory[model]
        else:
            self.memory[model] = takes
        if self.ready:
            self.regroup({model})

    def regroup(self, models: Collection[str]) -> None:
        """Queue the jobs of these models as they are told apart now. Linear, and due once for a card that changes."""
        for job in self.jobs.values():
            if job.wish.model in models:
                waits = job.place is not None
                self.dequeue(job)
                job.wish = self.wish(replace(job.wish, part=1.0), job.volume)
                if waits:
                    self.enqueue(job)
        for worker in self.workers.values():
            if not worker.gone and any(model in models for model in worker.models):
                self.refit(worker)

    def _prune(self) -> None:
        empty = {wish for wish, queue in self.queues.items() if not queue.live}
        for wish in empty:
            del self.queues[wish]
        for model in list(self.by_model):
            self.by_model[model] = [queue for queue in self.by_model[model] if queue.live]
        for worker in self.workers.values():
            worker.queues = [queue for queue in worker.queues if queue.live]

    def enqueue(self, job: Job) -> None:
        """The job waits; nothing happens if it does already."""
        if job.place is not None:
            return
        queue = self.queue(job.wish)
        lane = queue.lanes.get(job.tenant)
        if lane is None:
            tenant = self.shares.tenant(job.tenant)
            lane = queue.lanes[job.tenant] = Lane(tenant, queue)
            tenant.lanes[lane] = None
        self.shares.waits(lane.tenant, job.wish.model)
        job.wary = job.avoid is not None
        lanes.join(lane, job, rank(job.priority, job.birth, self.times.ageing_s, job.id), self.jobs)
        self.fresh.append(job.id)

    def dequeue(self, job: Job) -> None:
        """The job waits no more; nothing happens if it does not."""
        if job.place is None:
            return
        queue = self.queues[job.wish]
        lane = queue.lanes[job.tenant]
        lanes.leave(lane, job, job.place, self.jobs)
        self.shares.waits_no_more(lane.tenant, job.wish.model)
        if not lane.live:
            del queue.lanes[job.tenant]
            del lane.tenant.lanes[lane]

    # --- workers -----------------------------------------------------------------------------------------------

    def _home(self, name: str) -> Worker:
        found = self.workers.get(name)
        if found is None:
            # A record names a worker that was not heard of: it has one lease time from now to be heard.
            found = self.meet(name, self.times.lease_s)
            self.wake_worker(found, self.now + found.lease_s)
        return found

    def meet(self, name: str, lease_s: float) -> Worker:
        """A worker that was not known, as operators and quarantines want it."""
        made = self.workers[name] = Worker(name, self.now, lease_s)
        made.drained = name in self.drained
        bar = self.bars.get(name)
        if bar is not None:
            made.failures, made.barred_until, made.probation = bar.failures, bar.until, True
        return made

    def learn_load(self, kind: Kind, load_s: Mapping[str, float]) -> None:
        """A worker of that kind says how long loading its models took."""
        for model, seconds in load_s.items():
            self._load_s[model, kind] = seconds

    def load_s(self, worker: Worker, model: str) -> float:
        """Seconds until the worker has the model loaded: as measured on its kind."""
        if not worker.loaded or model in worker.loaded:
            return 0.0
        return self._load_s.get((model, worker.kind), self.times.load_s)

    def set_drained(self, name: str, drained: bool) -> None:
        """An operator wants the worker of that name to take no more jobs, or to take them again."""
        if drained:
            self.drained.add(name)
        else:
            self.drained.discard(name)
        worker = self.workers.get(name)
        if worker is not None and worker.drained != drained:
            worker.drained = drained
            self.refit(worker)

    def _fits(self, worker: Worker, queue: Queue) -> bool:
        return not worker.drained and self.why_not(worker, queue.wish) is Why.FITS

    def why_not(self, worker: Worker, wish: Wish) -> Why:
        """Whether the worker serves the wish, operators left aside."""
        return fit(
            wish,
            worker.state,
            worker.models,
            worker.layouts,
            width=worker.width,
            device_memory=worker.memory,
            takes=self.memory.get(wish.model),
        )

    def refit(self, worker: Worker, kind: Kind | None = None) -> None:
        """Its state, models, layouts or kind have changed: find the queues it serves."""
        for queue in worker.queues:
            queue.leave(worker)
            if len(queue.fitting) == 1 and any(lane.wary for lane in queue.lanes.values()):
                # A job may have preferred this worker to the one that is left.
                self.rematch.update(queue.free)
        worker.queues = []
        worker.kind = kind or worker.kind
        if not worker.gone and not worker.drained and worker.incarnation is not None:
            for model in worker.models:
                for queue in self.by_model.get(model, ()):
                    if self._fits(worker, queue):
                        worker.queues.append(queue)
                        queue.serve(worker)
        self.refresh(worker)

    def refresh(self, worker: Worker) -> None:
        """Its slots may have changed."""
        if self.available(worker):
            self.rematch[worker.name] = None
            for queue in worker.queues:
                queue.offer(worker)
        else:
            for queue in worker.queues:
                queue.withdraw(worker)

    def remove_worker(self, worker: Worker) -> None:
        """It is gone and nothing is left of it."""
        worker.gone = True
        self.refit(worker)
        del self.workers[worker.name]
