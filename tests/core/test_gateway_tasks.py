"""Which task a request is for, and what each task takes: by the files that come with it and the model's card."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from gateway.resolve import UNANNOUNCED, resolve
from gateway.schema.requests import SubmitBody
from gateway.tasks import TAKES
from shared.errors import InvalidRequest
from shared.messages import FloatRange, Input, IntRange, JobRequest, ModelCard, Task
from tests.support.gateway import CARD

EDITING = replace(
    CARD,
    name="vace",
    tasks=("video-editing", "text-to-video", "image-to-video", "first-last-frame-to-video"),
    also_takes=("mask", "references"),
    control_scale=FloatRange(min=0.0, max=2.0, default=1.0),
)
CLIPS = replace(
    CARD,
    name="wan",
    tasks=("text-to-video", "text-to-image", "video-to-video"),
    strength=FloatRange(min=0.1, max=1.0, default=0.7),
    guidance_scale_2=FloatRange(min=0.0, max=20.0, default=3.0),
)
BOTH = replace(CARD, name="both", tasks=("image-to-video", "first-last-frame-to-video"), also_takes=())
LAST = replace(BOTH, name="last", tasks=("first-last-frame-to-video",))


def asked(card: ModelCard, *files: str, **fields: object) -> JobRequest:
    inputs = {name: Input(key=name, media_type="", size=1, sha256=name) for name in files}
    body = msgspec.convert({"prompt": "a cat", **fields}, SubmitBody)
    return resolve(body, card, inputs, (), 7, card.name)


def refused(card: ModelCard, *files: str, **fields: object) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        asked(card, *files, **fields)
    return caught.value.field, str(caught.value)


@pytest.mark.parametrize(
    ("card", "files", "task"),
    [
        (EDITING, ("video",), "video-editing"),
        (EDITING, ("video", "mask", "references.0"), "video-editing"),
        (EDITING, ("references.0", "references.1"), "video-editing"),
        (EDITING, ("image",), "image-to-video"),
        (EDITING, ("image", "references.0"), "image-to-video"),
        (EDITING, ("image", "last_image"), "first-last-frame-to-video"),
        (EDITING, (), "text-to-video"),
        (CLIPS, ("video",), "video-to-video"),
        (BOTH, ("image",), "image-to-video"),
        (BOTH, ("image", "last_image"), "first-last-frame-to-video"),
        (LAST, ("image", "last_image"), "first-last-frame-to-video"),
        (CARD, ("image", "last_image"), "image-to-video"),
    ],
)
def test_the_files_tell_the_task(card: ModelCard, files: tuple[str, ...], task: str) -> None:
    request = asked(card, *files)
    assert request.task == task
    assert set(request.inputs()) == set(files)


@pytest.mark.parametrize(
    ("card", "files", "fields", "field", "says"),
    [
        (UNANNOUNCED, ("video",), {}, "task", "video-to-video or video-editing"),
        (EDITING, ("mask",), {}, "task", "say which task"),
        (EDITING, ("references.0", "mask"), {}, "mask", "no video"),
        (EDITING, (), {"task": "video-editing"}, "video", "needs video or references"),
        (EDITING, ("video", "image"), {}, "image", "takes none"),
        (CARD, ("video",), {}, "video", "not video-to-video"),
        (CLIPS, ("video", "mask"), {}, "video", "not video-editing"),
        (CLIPS, ("image",), {"task": "video-to-video"}, "image", "takes none"),
        (CLIPS, (), {"task": "video-to-video"}, "video", "needs one"),
        (LAST, ("image",), {}, "last_image", "needs one"),
        (BOTH, ("image", "last_image"), {"task": "image-to-video"}, "last_image", "both takes none"),
        (CARD, ("image", "references.0"), {}, "references", "wan-demo takes none"),
        (replace(EDITING, also_takes=()), ("video", "mask"), {}, "mask", "vace takes none"),
        (CLIPS, ("video",), {"strength": 0.05}, "strength", "from 0.1 to 1"),
        (CLIPS, ("video",), {"strength": 0.3, "steps": 3}, "strength", "less than one step"),
        (CLIPS, (), {"strength": 0.5}, "strength", "text-to-video has none"),
        (CARD, (), {"strength": 0.5}, "strength", "the model has none"),
        (EDITING, (), {"control_scale": 1.0}, "control_scale", "text-to-video has none"),
        (CARD, (), {"guidance_scale_2": 1.0}, "guidance_scale_2", "one expert"),
        (CLIPS, (), {"guidance_scale_2": 21.0}, "guidance_scale_2", "from 0 to 20"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(
    card: ModelCard, files: tuple[str, ...], fields: dict[str, object], field: str, says: str
) -> None:
    named, message = refused(card, *files, **fields)
    assert named == field
    assert says in message


def test_settings_of_some_tasks_take_the_cards_default_there_and_are_absent_elsewhere() -> None:
    assert asked(CLIPS, "video").strength == 0.7
    assert asked(CLIPS, "video", strength=0.2).strength == 0.2
    assert asked(CLIPS).strength is None
    assert asked(EDITING, "video").control_scale == asked(EDITING, "image").control_scale == 1.0
    assert asked(EDITING).control_scale is None
    assert asked(CARD, "image").control_scale is None


def test_the_second_experts_guidance_is_as_the_first_where_only_that_is_given() -> None:
    assert asked(CLIPS).guidance_scale_2 == 3.0
    assert asked(CLIPS, guidance_scale=6.0).guidance_scale_2 is None
    assert asked(CLIPS, guidance_scale=6.0, guidance_scale_2=2.0).guidance_scale_2 == 2.0
    assert asked(CARD).guidance_scale_2 is None


def test_every_task_says_what_it_takes() -> None:
    assert set(TAKES) == set(Task)


CHARACTERS = replace(
    CARD,
    name="animate",
    tasks=("character-animation", "character-replacement"),
    clip_len=IntRange(min=5, max=121, default=77, multiple_of=4, offset=1),
    overlap=IntRange(min=1, max=5, default=1, multiple_of=4, offset=1),
)


def test_clips_of_a_body_and_a_face_are_for_the_character_tasks() -> None:
    moved = asked(CHARACTERS, "image", "pose", "face", overlap=5)
    assert (moved.task, moved.clip_len, moved.overlap) == ("character-animation", 77, 5)
    assert sorted(moved.inputs()) == ["face", "image", "pose"]
    replaced = asked(CHARACTERS, "image", "pose", "face", "background", "mask")
    assert replaced.task == "character-replacement"
    assert sorted(replaced.inputs()) == ["background", "face", "image", "mask", "pose"]
    assert refused(CHARACTERS, "image", "pose") == ("face", "character-animation needs one")
    assert refused(CHARACTERS, "image", "pose", "face", "mask")[0] == "background"
    assert refused(CHARACTERS, "image", "pose", "face", "video")[0] == "video"
    assert refused(CHARACTERS, "image", "pose", "face", clip_len=6)[0] == "clip_len"
    assert refused(CARD, "image", "pose", "face")[0] == "pose"
    assert refused(CARD, "image", overlap=1) == ("overlap", "the model has none")
    assert asked(UNANNOUNCED, "image", "pose", "face").task == "character-animation"


def test_a_solver_may_be_called_as_its_paper_calls_it() -> None:
    assert asked(replace(CARD, solvers=("unipc", "dpm++")), solver="dpm++").solver == "dpm++"
