"""``wan-local-suite``: ``/animate/*``. A picture of somebody moves as clips of a body and a face do, or takes the place
of who is in them.

The five files lie in a folder of this machine or come as parts of a multipart body. A model that does not animate makes
a video of the picture and the prompt; what it did not use stands in the answer's ``message`` and in the job's metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.dialects.words import JobOptions, ended_at, iso, why
from gateway.schema.jobs import JobView
from gateway.schema.requests import SubmitBody
from shared.errors import InvalidRequest
from shared.messages import ModelCard, State, Task

#: The files by their names, and the fields of a job that they are.
FILES = {
    "src_ref.png": "image",
    "src_pose.mp4": "pose",
    "src_face.mp4": "face",
    "src_bg.mp4": "background",
    "src_mask.mp4": "mask",
}
#: Those that are there only to replace somebody.
REPLACING = frozenset({"src_bg.mp4", "src_mask.mp4"})
#: From our field to theirs, for errors.
FIELDS = {
    "prompt": "input_prompt",
    "steps": "sampling_steps",
    "guidance_scale": "guide_scale",
    "solver": "sample_solver",
    "overlap": "refert_num",
    **{field: name for name, field in FILES.items()},
}
STATUS = {
    State.QUEUED: "pending",
    State.ASSIGNED: "pending",
    State.RUNNING: "running",
    # Its only end is cancelled, and this service knows no such state.
    State.CANCELLING: "failed",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
}
_PROMPT = "视频中的人在做动作"
#: In the job's metadata: what was sent and not used.
UNUSED = "animate.unused"


class AnimateJob(JobOptions, kw_only=True):
    """``POST /animate/jobs`` and ``/animate/run``. ``src_root_path``: a folder on this machine with the files; without
    one they are parts of a multipart body. ``seed``: -1 draws one. ``refert_num``: how many frames of a segment the
    next one begins with. ``offload_model`` is the pool's affair here."""

    src_root_path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    job_id: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    replace_flag: bool = False
    clip_len: Annotated[int, Meta(ge=5, le=1001)] = 77
    refert_num: Annotated[int, Meta(ge=1, le=5)] = 1
    shift: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    sample_solver: Annotated[str, Meta(pattern=r"^(unipc|dpm\+\+)$")] = "dpm++"
    sampling_steps: Annotated[int, Meta(ge=1, le=1000)] = 20
    guide_scale: Annotated[float, Meta(ge=0, le=100)] = 1.0
    input_prompt: Annotated[str, Meta(max_length=4000)] = ""
    negative_prompt: Annotated[str, Meta(max_length=4000)] | None = None
    seed: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = -1
    offload_model: bool | None = None
    fps: Annotated[int, Meta(ge=1, le=120)] = 30

    def check(self) -> None:
        """What single fields do not tell.

        Raises:
            InvalidRequest: names the field.
        """
        if self.clip_len % 4 != 1:
            raise InvalidRequest(f"must be four times a number, plus one; not {self.clip_len}", "clip_len")
        if self.refert_num not in (1, 5):
            raise InvalidRequest(f"must be 1 or 5, not {self.refert_num}", "refert_num")

    def wanted(self) -> Mapping[str, str]:
        """The files that are needed, and the fields that they are."""
        return {name: field for name, field in FILES.items() if self.replace_flag or name not in REPLACING}


class AnimateStatus(Struct, kw_only=True):
    """A job; ``output_path`` is where this server has the video, times are in ISO 8601."""

    job_id: str
    status: str
    output_path: str | None
    message: str
    started_at: str | None
    finished_at: str | None


class Plan(Struct, frozen=True, kw_only=True):
    """A request as ours: the fields of the files that go with it."""

    body: SubmitBody
    files: frozenset[str]


def plan(asked: AnimateJob, sent: Collection[str], card: ModelCard, model: str | None) -> Plan:
    """Their request as ours, as the model can do it.

    Args:
        sent: names of the files that are there.
        model: what the setting says that these jobs are for.

    Raises:
        InvalidRequest: a file is missing, or a field is not as it must be.
    """
    asked.check()
    for name in asked.wanted():
        if name not in sent:
            raise InvalidRequest("is missing", name)
    replacing = asked.replace_flag and Task.CHARACTER_REPLACEMENT in card.tasks
    animating = replacing or Task.CHARACTER_ANIMATION in card.tasks
    names = {"src_ref.png"}
    if replacing:
        task, names = Task.CHARACTER_REPLACEMENT, set(FILES)
    elif animating:
        task, names = Task.CHARACTER_ANIMATION, set(FILES) - REPLACING
    elif Task.IMAGE_TO_VIDEO in card.tasks:
        task = Task.IMAGE_TO_VIDEO
    else:
        task, names = Task.TEXT_TO_VIDEO, set()
    unused = [name for name in FILES if name in sent and name not in names]
    unused += ["replace_flag"] if asked.replace_flag and not replacing else []
    unused += [] if animating else ["refert_num"]
    unused += [] if asked.offload_model is None else ["offload_model"]
    body = SubmitBody(
        model=model,
        task=str(task),
        prompt=asked.input_prompt or _PROMPT,
        negative_prompt=asked.negative_prompt,
        # A video as long as the clips; of a model that takes none, as long as one segment.
        num_frames=card.num_frames.max if animating else asked.clip_len,
        clip_len=asked.clip_len if animating and card.clip_len is not None else None,
        overlap=asked.refert_num if animating and card.overlap is not None else None,
        fps=asked.fps,
        steps=asked.sampling_steps,
        guidance_scale=asked.guide_scale,
        shift=asked.shift,
        solver=asked.sample_solver,
        seed=None if asked.seed < 0 else asked.seed,
    )
    body = asked.on(body)
    if unused:
        body = replace(body, metadata={**body.metadata, UNUSED: ", ".join(unused)})
    return Plan(body=body, files=frozenset(FILES[name] for name in names))


def status_of(view: JobView) -> AnimateStatus:
    """Our job as theirs, of whatever dialect it came by."""
    begun = [entry.at for entry in view.transitions if entry.state is State.RUNNING]
    return AnimateStatus(
        job_id=view.id,
        status=STATUS[view.state],
        output_path=f"/animate/jobs/{view.id}/media" if view.state is State.SUCCEEDED else None,
        message=_message(view),
        started_at=iso(begun[-1]) if begun else None,
        finished_at=iso(ended_at(view)),
    )


def _message(view: JobView) -> str:
    match view.state:
        case State.QUEUED:
            said = view.queue.message if view.queue is not None and view.queue.message else "waiting for a worker"
        case State.ASSIGNED:
            said = "about to start"
        case State.RUNNING:
            said = f"running: {view.progress.stage}" if view.progress is not None else "running"
        case State.SUCCEEDED:
            said = f"made by {view.model}"
        case State.FAILED:
            said = why(view) or "failed"
        case State.CANCELLING | State.CANCELLED:
            said = "the job was cancelled"
    unused = view.metadata.get(UNUSED)
    return f"{said}; {view.model} does not use {unused}" if unused else said
