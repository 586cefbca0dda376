"""A job's way through the stages, the same on every rank of a group: where it may stop, and where the ranks agree.

Three kinds of point. ``boundary`` stands before a step: rank 0 tells whether the job goes on, and any rank may say that
its numbers are bad. ``agreed`` surrounds work without collectives: if it fails on any rank, all ranks end the job
together and go on to the next. ``exchanging`` surrounds work with collectives: before each of them the ranks agree
that none has run out of memory (``parallel.fence``). What fails otherwise between collectives cannot be agreed on
without hanging: that rank dies, and the group with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from msgspec import Struct

from shared.messages import Failure, Reason, Stage
from workers.engine.errors import AgreedFailure, JobError, OutOfMemory, PeerFailed, StoppedAt
from workers.engine.parallel import fence


class Where(Struct, frozen=True):
    """Where a job is: ``step`` of ``total_steps`` done, counted over all outputs of the job and in the stage's own
    unit: denoising steps, frames decoded, files completed. A stage is told before its work, so never at its total."""

    stage: Stage
    step: int
    total_steps: int


class Unison(Protocol):
    """How the ranks of a group agree; see ``lockstep.Lockstep``."""

    def gate(self, stop: bool, failure: Failure | None) -> tuple[bool, Failure | None]:
        """All ranks learn whether rank 0 wants to stop, and the failure of the lowest rank that has one."""
        ...


class Alone:
    """A group of one rank agrees with itself."""

    def gate(self, stop: bool, failure: Failure | None) -> tuple[bool, Failure | None]:
        return stop, failure


class Listener(Protocol):
    """Rank 0's side of a job: hears where it is, and knows whether it is to stop."""

    def at(self, where: Where) -> None:
        """The job has come here."""
        ...

    def should_stop(self) -> bool:
        """Whether the job has been cancelled."""
        ...

    def show(self, picture: Callable[[], bytes]) -> None:
        """There is something to see, a JPEG that ``picture`` makes if it is wanted now."""
        ...


class Silent:
    """What other ranks than 0 listen with."""

    def at(self, where: Where) -> None:
        return None

    def should_stop(self) -> bool:
        return False

    def show(self, picture: Callable[[], bytes]) -> None:
        return None


class Course:
    """One job's way.

    Args:
        unison: of the group.
        listener: of this rank.
        is_out_of_memory: the device's judgement of an exception.
    """

    def __init__(self, unison: Unison, listener: Listener, is_out_of_memory: Callable[[BaseException], bool]) -> None:
        self._unison, self._listener, self._is_out_of_memory = unison, listener, is_out_of_memory

    def reach(self, stage: Stage, step: int, total_steps: int) -> None:
        """Tell where the job is; nothing is agreed on."""
        self._listener.at(Where(stage, step, total_steps))

    def show(self, picture: Callable[[], bytes]) -> None:
        """As ``Listener.show``."""
        self._listener.show(picture)

    def boundary(self, stage: Stage, step: int, total_steps: int, failure: JobError | None = None) -> None:
        """A place where the job can end on all ranks together.

        Raises:
            StoppedAt: it was cancelled.
            AgreedFailure: ``failure`` was given on this rank or another.
        """
        self._listener.at(Where(stage, step, total_steps))
        self.settle(step, failure)

    def settle(self, step: int, failure: JobError | None = None) -> None:
        """As ``boundary`` before that denoising step, with nothing to tell."""
        mine = failure.failure() if failure is not None else None
        stop, agreed = self._unison.gate(self._listener.should_stop(), mine)
        if agreed is not None:
            refused = agreed.reason in (Reason.INPUT_REJECTED, Reason.CANNOT_SERVE)
            raise AgreedFailure(agreed, refused=refused)
        if stop:
            raise StoppedAt(step)

    @contextmanager
    def agreed(self, step: int) -> Iterator[None]:
        """Work without collectives; a ``JobError``, ``OSError`` or lack of memory inside ends the job on all ranks.

        Raises:
            AgreedFailure: it failed on this rank or another.
            StoppedAt: the job was cancelled meanwhile.
        """
        failure: JobError | None = None
        try:
            yield
        except AgreedFailure:
            # Of an exchange inside: all ranks have it.
            raise
        except PeerFailed:
            # The rank that it is about says why, at the same point.
            self.settle(step)
            raise
        except JobError as error:
            failure = error
        except OSError as error:
            failure = JobError(f"cannot read or write: {error}")
        except (RuntimeError, MemoryError) as error:
            if not self._is_out_of_memory(error):
                raise
            failure = OutOfMemory(str(error))
        self.settle(step, failure)

    @contextmanager
    def exchanging(self, step: int) -> Iterator[None]:
        """As ``agreed``, around work with exchanges among all ranks, or among some under a ``Guard`` of their own."""
        with self.agreed(step), fence.within(partial(self.settle, step)):
            yield
