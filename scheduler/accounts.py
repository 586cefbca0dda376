"""What tenants pay for jobs at workers, and what that does to their lanes' standing in the queues (see ``shares``)."""

from __future__ import annotations

from scheduler import lanes
from scheduler.entities import Job, Worker
from scheduler.events import Wish
from scheduler.policy import Times
from scheduler.queues import Queue, Tenant
from scheduler.shares import Shares
from scheduler.timers import Timers


class Accounts(Timers):
    """The tenants' accounts.

    Attributes:
        queues: by wish.
        shares: what each tenant has used.
        rematch: free workers for which there may be a job now: work of the decision being made.
    """

    def __init__(self, times: Times) -> None:
        super().__init__()
        self.times = times
        self.queues: dict[Wish, Queue] = {}
        self.shares = Shares(times)
        self.rematch: dict[str, None] = {}

    def charge(self, job: Job, worker: Worker) -> None:
        """The job is at that worker, or about to be: its tenant pays for it from now on."""
        tenant = self.shares.tenant(job.tenant)
        if job.charge is None:
            tenant.running += 1
            job.width, job.kind = worker.width, worker.kind if worker.incarnation is not None else None
            self.shares.charge(job, self.shares.expected(job.wish.model, job.width), self.now)
            if tenant.full:
                self.turn(tenant)
        elapsed_s = self._elapsed_s(job) * job.width
        if elapsed_s > job.charged_s:
            self.shares.charge(job, 2 * elapsed_s, self.now)
            self.turn(tenant)  # its weight may have grown since the first charge

    def settle(self, job: Job, ran_s: float, *, ended: bool = False) -> None:
        """The job is at no worker: its tenant has paid for what it ran."""
        if job.charge is None or job.reserved is not None:
            return
        tenant = self.shares.tenant(job.tenant)
        self.shares.settle(job, ran_s * job.width, self.now, ended=ended)
        tenant.running -= 1
        self.turn(tenant)

    def turn(self, tenant: Tenant) -> None:
        """Its standing is better than it was, or whether it may have more jobs at workers has changed."""
        for lane in tenant.lanes:
            entry = lane.fair
            if entry is not None and not tenant.full and lane.key >= entry[0]:
                continue
            lanes.enter(lane, self.jobs)
            if entry is None and lane.fair is not None:
                self.rematch.update(lane.queue.free)

    def rebase(self) -> None:
        """Bring the tenants' sums back into a float's reach. Linear, and due once in some hundred half-lives."""
        self.shares.rebase(self.now, [job for job in self.jobs.values() if job.charge is not None])
        for queue in self.queues.values():
            queue.fair, queue.aged = [], []
            for lane in queue.lanes.values():
                lanes.enter(lane, self.jobs)

    def _elapsed_s(self, job: Job) -> float:
        return 0.0 if job.run_since is None else max(0.0, self.now - job.run_since)

    def _ran_s(self, job: Job, told: float | None) -> float:
        """How long the attempt that is over ran: as the record tells, if that is not an earlier one's."""
        if job.charge is None:
            return 0.0
        return told if told is not None and told != job.ran_s else self._elapsed_s(job)
