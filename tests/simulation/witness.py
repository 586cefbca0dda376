"""What must hold at every moment, checked at every write and at every run of a job.

``Broken`` names the promise; the run ends there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise

from deploy.history.check import Finding, Submit, check_record, rewritten
from shared.lifecycle import EDGES
from shared.messages import TERMINAL, JobRecord, Reason, Result, State, Succeeded, WorkerLease, decode
from shared.topology import BUCKETS, JOBS, RESULTS, WORKERS
from tests.simulation.network import Broker
from tests.support.memory_bus import Write

#: Seconds by which clocks and hops may make a start deadline seem met early.
_EARLY_S = 1.0
#: Seconds after a jump of the broker's clock during which a job that comes may be dated wrongly.
_JUMP_S = 15.0
_OWNERS = {spec.name: spec.owners for spec in BUCKETS}


class Broken(AssertionError):
    """A promise does not hold."""


class Witness:
    """Sees every write at the moment of its effect.

    Args:
        now: seconds since the run began.

    Attributes:
        records: the last revision of every record that was ever there.
        accepted: the submits that clients were answered with 2xx for.
        cancelled: jobs whose cancel was answered before they ended.
        trace: what has happened, as a digest; two runs of a seed agree on it.
        writes: how many there were.
        lines: what has happened, in words, if somebody wants to read it.
        broken: the first promise that was found broken.
    """

    def __init__(self, broker: Broker, now: Callable[[], float]) -> None:
        self.records: dict[str, JobRecord] = {}
        self.deleted: set[str] = set()
        self.accepted: dict[str, Submit] = {}
        self.cancelled: set[str] = set()
        self.writes = 0
        self.lines: list[str] | None = None
        self._born: dict[str, float] = {}
        self._held: dict[tuple[str, int], tuple[str, str]] = {}
        self._ran: dict[tuple[str, int], str] = {}
        self._ends: dict[tuple[str, int], bytes] = {}
        self._digest = hashlib.sha256()
        self._broker = broker
        self._now = now
        self.broken: Broken | None = None
        broker.after_write = self._wrote

    @property
    def trace(self) -> str:
        return self._digest.hexdigest()

    def note(self, line: str) -> None:
        """Something happened."""
        self._digest.update(f"{self._now():.6f} {line}".encode())
        self.say(line)

    def say(self, line: str) -> None:
        """For whoever reads the run's log; no part of the trace."""
        if self.lines is not None:
            self.lines.append(f"{self._now():.6f} {line}")

    def check(self) -> None:
        """Raise what was found broken since."""
        if self.broken is not None:
            raise self.broken

    def breaks(self, text: str) -> None:
        """A promise does not hold: the first that is found counts."""
        self.note(f"BROKEN {text}")
        if self.broken is None:
            self.broken = Broken(f"at {self._now():.3f} s: {text}")

    # --- what is seen ------------------------------------------------------------------------------------------------

    def ran(self, job: str, epoch: int, by: str) -> None:
        """A rank was given the job."""
        self.note(f"run {job} {epoch} {by}")
        before = self._ran.setdefault((job, epoch), by)
        if before != by:
            self.breaks(f"epoch {epoch} of {job} ran at {before} and at {by}")
        record = self.records.get(job)
        if record is None or record.epoch < epoch:
            self.breaks(f"{by} runs epoch {epoch} of {job}, which was never assigned")

    def _wrote(self, write: Write) -> None:
        self.writes += 1
        digest = hashlib.sha256(write.value or b"").hexdigest()[:16]
        # Keys that tell the broker's clock are drawn by the operating system: the only thing here that no seed decides.
        key = "_clock" if write.key.startswith("_clock.") else write.key
        self.note(f"{write.connection} {write.bucket} {key} {digest}")
        role = write.connection.split("-")[0]
        if role not in _OWNERS[write.bucket]:
            self.breaks(f"{write.connection} wrote {write.bucket}/{write.key}")
        match write.bucket:
            case JOBS.name:
                self._saw_job(write)
            case WORKERS.name if write.value is not None:
                lease = decode(write.value, WorkerLease)
                for held in lease.held:
                    self._saw_held(held.job, held.epoch, lease.worker, lease.incarnation)
            case RESULTS.name if write.value is not None:
                self._saw_result(write.key, write.value)

    def _saw_held(self, job: str, epoch: int, worker: str, incarnation: str) -> None:
        before = self._held.setdefault((job, epoch), (worker, incarnation))
        if before != (worker, incarnation):
            self.breaks(f"epoch {epoch} of {job} is held by {before} and by {(worker, incarnation)}")

    def _saw_result(self, key: str, value: bytes) -> None:
        result = decode(value, Result)
        before = self._ends.setdefault((result.job, result.epoch), value)
        if before != value:
            self.breaks(f"the result {key} was changed")

    def _saw_job(self, write: Write) -> None:
        before = self.records.get(write.key)
        if write.value is None:
            if before is None or before.state not in TERMINAL:
                self.breaks(f"{write.key} was deleted while {before.state if before else 'not there'}")
            self.deleted.add(write.key)
            return
        after = decode(write.value, JobRecord)
        self.note(f"  {after.state} {after.epoch} {after.worker} {after.incarnation}")
        self.records[write.key] = after
        if write.key in self.deleted:
            self.breaks(f"{write.key} was written after it was deleted")
        self._findings(check_record(after))
        if before is None:
            self._born[write.key] = self._now()
            return
        self._findings(rewritten(before, after))
        self._moved(before, after)
        if after.state in TERMINAL and before.state not in TERMINAL:
            self._ended(before, after)

    def _findings(self, found: list[Finding]) -> None:
        for finding in found:
            if finding.broken:
                self.breaks(str(finding))

    def _moved(self, before: JobRecord, after: JobRecord) -> None:
        last = before.transitions[-1].index
        new = [entry for entry in after.transitions if entry.index > last]
        path = [before.transitions[-1], *new]
        for one, two in pairwise(path):
            if two.state not in EDGES[one.state]:
                self.breaks(f"{after.id}: {one.state} to {two.state}")
            if two.epoch != one.epoch + (two.state is State.ASSIGNED):
                self.breaks(f"{after.id}: epoch {one.epoch} to {two.epoch} at {two.state}")
        if len(new) > 2:
            self.breaks(f"{after.id}: {len(new)} moves in one write")

    def _ended(self, before: JobRecord, after: JobRecord) -> None:
        job = after.id
        if job in self.cancelled and after.state is not State.CANCELLED:
            self.breaks(f"{job}: its cancel was answered, and it ended as {after.state}")
        if after.state is State.SUCCEEDED:
            value = self._ends.get((job, after.epoch))
            outcome = decode(value, Result).outcome if value is not None else None
            if not isinstance(outcome, Succeeded) or outcome.outputs != after.outputs:
                self.breaks(f"{job} succeeded with what no worker reported at epoch {after.epoch}")
        reason = after.failure.reason if after.failure is not None else ""
        dated = not self._broker.forward and self._born[job] > self._broker.jumped_at + _JUMP_S
        if reason == Reason.START_DEADLINE_EXCEEDED and (dated or self._broker.jumped_at < 0):
            age = self._now() - self._born[job]
            if after.start_deadline_s is None or age < after.start_deadline_s * 0.99 - _EARLY_S:
                self.breaks(f"{job} expired after {age:.1f} s of {after.start_deadline_s} s")
        if reason == Reason.START_DEADLINE_EXCEEDED and before.waited_s is not None:
            self.breaks(f"{job} had run, and expired")
