"""What can end a job inside the engine, typed by what the agent is to be told."""

from __future__ import annotations

from shared.errors import GenfleetError
from shared.messages import Failure, Reason


class CannotLoad(GenfleetError):
    """The checkpoint is missing, damaged or of another model."""


class JobError(GenfleetError):
    """The job ended in the engine; ``reason`` is a word of ``messages.Reason``.

    Attributes:
        refused: the job is at fault, not the attempt: no other worker could do it either.
    """

    reason: str = Reason.ENGINE_ERROR
    refused: bool = False

    def failure(self) -> Failure:
        """The error as it travels between ranks and to the agent."""
        return Failure(reason=self.reason, message=str(self))


class InputRejected(JobError):
    """A file that the job reads cannot be used."""

    reason = Reason.INPUT_REJECTED
    refused = True


class NotServed(JobError):
    """This group cannot do this job: size, task, solver or layout."""

    reason = Reason.CANNOT_SERVE
    refused = True


class NotFinite(JobError):
    """The latents are not finite: there is nothing to decode."""


class OutOfMemory(JobError):
    """The device has not enough memory for this job."""

    reason = Reason.OUT_OF_MEMORY


class AgreedFailure(JobError):
    """All ranks agreed that the job failed on at least one of them.

    Args:
        failure: of the lowest rank that failed.
        refused: as in ``JobError``.
    """

    def __init__(self, failure: Failure, *, refused: bool) -> None:
        super().__init__(failure.message)
        self.reason = failure.reason
        self.refused = refused


class PeerFailed(JobError):
    """Another rank ran out of memory before an exchange: nobody has gone into it. That rank says why."""

    reason = Reason.OUT_OF_MEMORY

    def __init__(self) -> None:
        super().__init__("another rank of the group ran out of memory")


class NoMemoryInExchange(GenfleetError):
    """The memory ran out inside a collective: this rank cannot tell the others and has to end."""


class StoppedAt(GenfleetError):
    """All ranks stopped at the same step boundary, because the job was cancelled."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped before step {step}")
        self.step = step


class PeersLost(GenfleetError):
    """A collective failed: a rank of the group is gone or too late."""
