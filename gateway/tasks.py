"""Which task a request is for, and which inputs and settings each task takes. Pure."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from gateway.schema.requests import SubmitBody
from shared.errors import InvalidRequest
from shared.messages import ModelCard, Task


class Takes(Struct, frozen=True):
    """What a task takes of the request's files.

    Attributes:
        needs: all of these.
        one_of: at least one of these, if there are any.
        may: these where the model's card has them in ``also_takes``.
    """

    needs: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


#: A task that is not named here takes whatever its card's engine makes of it.
TAKES: dict[str, Takes] = {
    Task.TEXT_TO_VIDEO: Takes(),
    Task.TEXT_TO_IMAGE: Takes(),
    Task.IMAGE_TO_VIDEO: Takes(needs=("image",), may=("last_image", "references")),
    Task.FIRST_LAST_FRAME_TO_VIDEO: Takes(needs=("image", "last_image"), may=("references",)),
    Task.VIDEO_TO_VIDEO: Takes(needs=("video",)),
    Task.VIDEO_EDITING: Takes(one_of=("video", "references"), may=("mask", "references")),
    Task.CHARACTER_ANIMATION: Takes(needs=("image", "pose", "face")),
    Task.CHARACTER_REPLACEMENT: Takes(needs=("image", "pose", "face", "background", "mask")),
}
#: Tasks that make a picture of somebody move.
CHARACTERS = frozenset({Task.CHARACTER_ANIMATION.value, Task.CHARACTER_REPLACEMENT.value})
#: Tasks that have no control: there is nothing given that could act.
_TEXT_ALONE = frozenset({Task.TEXT_TO_VIDEO.value, Task.TEXT_TO_IMAGE.value})


def task_of(body: SubmitBody, card: ModelCard, given: Collection[str]) -> str:
    """The task that was named, or else the one that the files are for.

    Args:
        given: the fields that have files.

    Raises:
        InvalidRequest: the model does not do it, or several would fit.
    """
    task, field = (body.task, "task") if body.task is not None else _inferred(body, card, given)
    if task not in card.tasks:
        raise InvalidRequest(f"{card.name} does {', '.join(card.tasks)}; not {task}", field)
    return task


def _inferred(body: SubmitBody, card: ModelCard, given: Collection[str]) -> tuple[str, str]:
    """The task, and the field that tells it."""
    if "pose" in given or "face" in given:
        replaced = "background" in given or "mask" in given
        task = Task.CHARACTER_REPLACEMENT if replaced else Task.CHARACTER_ANIMATION
        return task.value, "pose" if "pose" in given else "face"
    if "video" in given:
        if "mask" in given or "references" in given:
            return Task.VIDEO_EDITING.value, "video"
        fitting = [task for task in (Task.VIDEO_TO_VIDEO, Task.VIDEO_EDITING) if task in card.tasks]
        if len(fitting) > 1:
            raise InvalidRequest(f"say which task this is for: {' or '.join(fitting)}", "task")
        return (fitting[0] if fitting else Task.VIDEO_TO_VIDEO).value, "video"
    if "image" in given:
        last = Task.FIRST_LAST_FRAME_TO_VIDEO.value
        if ("last_image" in given or Task.IMAGE_TO_VIDEO not in card.tasks) and last in card.tasks:
            return last, "last_image"
        return Task.IMAGE_TO_VIDEO.value, "image"
    if "references" in given:
        return Task.VIDEO_EDITING.value, "references"
    if given:
        raise InvalidRequest("say which task this is for", "task")
    if body.num_frames == 1:
        return Task.TEXT_TO_IMAGE.value, "num_frames"
    if Task.TEXT_TO_VIDEO not in card.tasks and tuple(card.tasks) == (Task.TEXT_TO_IMAGE,):
        return Task.TEXT_TO_IMAGE.value, "task"
    return Task.TEXT_TO_VIDEO.value, "task"


def check_files(task: str, card: ModelCard, given: Collection[str]) -> None:
    """Refuse files that the task does not take, and the lack of those it needs.

    Raises:
        InvalidRequest: names the field.
    """
    takes = TAKES.get(task)
    if takes is None:
        return
    for field in given:
        if field in takes.needs or (field in takes.one_of and field != "references"):
            continue
        if field not in takes.may:
            raise InvalidRequest(f"{task} takes none", field)
        if field not in card.also_takes:
            raise InvalidRequest(f"{card.name} takes none", field)
    for field in takes.needs:
        if field not in given:
            raise InvalidRequest(f"{task} needs one", field)
    if takes.one_of and not any(field in given for field in takes.one_of):
        raise InvalidRequest(f"{task} needs {' or '.join(takes.one_of)}", takes.one_of[0])
    if "mask" in given and "video" not in given and task not in CHARACTERS:
        raise InvalidRequest("there is no video that it could be of", "mask")


def has_strength(task: str) -> bool:
    """Whether the task makes only a share of its clip anew."""
    return task == Task.VIDEO_TO_VIDEO


def has_control(task: str) -> bool:
    """Whether what is given to the task acts on every step, where the model can do that."""
    return task not in _TEXT_ALONE and task not in CHARACTERS and task != Task.VIDEO_TO_VIDEO
