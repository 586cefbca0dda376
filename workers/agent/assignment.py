"""Whether an agent takes a job: a pure answer to ``Assign``."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass

from shared.messages import (
    Accepted,
    Assign,
    AssignReply,
    Busy,
    CannotServe,
    Draining,
    Layout,
    ModelCard,
    Parallel,
    WrongIncarnation,
)
from workers.agent.group import Phase

#: Jobs whose last accepted epoch is remembered: the scheduler sends an assignment again until the job runs.
MAX_REMEMBERED = 10_000
_JOB = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Accepts:
    """The epochs that were accepted, by job."""

    def __init__(self) -> None:
        self._epochs: OrderedDict[str, int] = OrderedDict()

    def add(self, job: str, epoch: int) -> None:
        """Remember this one."""
        self._epochs[job] = epoch
        self._epochs.move_to_end(job)
        if len(self._epochs) > MAX_REMEMBERED:
            self._epochs.popitem(last=False)

    def last(self, job: str) -> int | None:
        """The last epoch of this job that was accepted."""
        return self._epochs.get(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What an answer depends on."""

    worker: str
    incarnation: str
    draining: bool
    #: No room, or another attempt at the same job is still here.
    busy: bool
    phase: Phase
    detail: str
    cards: tuple[ModelCard, ...]
    #: Of the model that is asked for; none if they are not known.
    layouts: tuple[Layout, ...]
    #: The model would have to be loaded while other jobs are held.
    in_the_way: bool = False
    #: It reads and writes files only by what an assignment grants.
    needs_files: bool = False


def answer(assign: Assign, now: Situation, last_epoch: int | None) -> AssignReply:
    """The reply. ``Accepted`` is new if ``last_epoch`` is not the assignment's own.

    Args:
        last_epoch: the last epoch of that job that this start of the worker accepted.
    """
    if (assign.worker, assign.incarnation) != (now.worker, now.incarnation):
        return WrongIncarnation(incarnation=now.incarnation)
    if last_epoch == assign.epoch:
        return Accepted()
    if last_epoch is not None and last_epoch > assign.epoch:
        return CannotServe(message=f"epoch {last_epoch} of this job has been here already")
    if not _JOB.fullmatch(assign.job):
        return CannotServe(message="not a job id")
    if now.draining:
        return Draining()
    if now.phase is Phase.BROKEN:
        return CannotServe(message=now.detail or "the group is broken")
    if now.busy or now.phase is not Phase.READY:
        return Busy()
    if assign.request.model not in {card.name for card in now.cards}:
        return CannotServe(message=f"this pool does not serve the model {assign.request.model[:64]!r}")
    if now.layouts and not any(suits(assign.request.parallel, layout) for layout in now.layouts):
        return CannotServe(message="the group as it is now has no such layout")
    if now.needs_files and assign.files is None:
        return CannotServe(message="this worker has no way to the artifact store, and no files were granted to it")
    return Busy() if now.in_the_way else Accepted()


def suits(wish: Parallel, layout: Layout) -> bool:
    """Whether this layout is what the job asks for, as far as it asks."""
    pairs = (
        (wish.cfg_size, layout.cfg),
        (wish.ulysses_size, layout.ulysses),
        (wish.vae_parallel, layout.vae_parallel),
        (wish.dit_fsdp, layout.dit_fsdp),
        (wish.t5_fsdp, layout.t5_fsdp),
    )
    return all(wanted is None or wanted == given for wanted, given in pairs)
