"""One job on one rank, from its request to the frame that answers it; shared by ``rank`` and ``direct``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shared.messages import Layout, Reason
from workers.engine.course import Course, Unison
from workers.engine.devices.base import Device
from workers.engine.errors import AgreedFailure, JobError, StoppedAt
from workers.engine.families.base import Family, Job
from workers.engine.inputs import Inputs, read
from workers.engine.progress import Pace, Report
from workers.engine.stages.provenance import provenance
from workers.link import Broke, Done, Pulse, Refused, Run, Stopped

Answer = Done | Refused | Broke | Stopped


class Prepared:
    """A job that rank 0 has checked: the layout it gets, the pictures and clips it reads, and its request as they make
    it."""

    def __init__(self, layout: Layout, inputs: Inputs) -> None:
        self.layout, self.request = layout, inputs.request
        self.pictures, self.clips = inputs.pictures, inputs.clips


def prepare(family: Family, run: Run) -> Prepared | Refused:
    """Check the request and read its inputs, before any other rank hears of it."""
    try:
        layout = family.check(run.request)
        inputs = read(run.request, run.inputs, family.card.num_frames)
        if inputs.request != run.request:
            layout = family.check(inputs.request)
    except JobError as error:
        return Refused(job=run.job, epoch=run.epoch, reason=error.reason, message=str(error))
    return Prepared(layout, inputs)


def lead(
    family: Family,
    device: Device,
    unison: Unison,
    run: Run,
    prepared: Prepared,
    pace: Pace,
    send: Callable[[Pulse], None],
    should_stop: Callable[[], bool],
) -> Answer:
    """Do the job on rank 0. Collective.

    Raises:
        Exception: what broke this rank between points of agreement, where the group has more than one rank.
    """
    request = prepared.request
    report = Report(run.job, run.epoch, request, pace, time.monotonic, send, should_stop)
    course = Course(unison, report, device.is_out_of_memory)
    origin = provenance(run.provenance, run.job, request)
    job = Job(request, prepared.layout, prepared.pictures, Path(run.out_dir), prepared.clips, origin)
    try:
        made = family.run(job, course)
    except StoppedAt as stopped:
        family.forget()
        return Stopped(job=run.job, epoch=run.epoch, step=stopped.step)
    except AgreedFailure as failure:
        family.forget()
        kind = Refused if failure.refused else Broke
        return kind(job=run.job, epoch=run.epoch, reason=failure.reason, message=str(failure))
    pace.finished(request, made.used)
    used = made.used if request == run.request else {**made.used, "num_frames": request.num_frames}
    return Done(job=run.job, epoch=run.epoch, files=made.files, used=used)


def broke(device: Device, run: Run, error: Exception) -> Broke:
    """What to answer for an error outside the points of agreement, in a group of one rank."""
    if device.is_out_of_memory(error):
        return Broke(job=run.job, epoch=run.epoch, reason=Reason.OUT_OF_MEMORY, message=first_line(error))
    sticky = device.is_sticky(error)
    reason = Reason.DEVICE_ERROR if sticky else Reason.ENGINE_ERROR
    if isinstance(error, JobError):
        reason = Reason(error.reason)
    return Broke(job=run.job, epoch=run.epoch, reason=reason, message=first_line(error), poisoned=sticky)


def first_line(error: BaseException) -> str:
    """An error for people: its type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:500]}" if text else type(error).__name__
