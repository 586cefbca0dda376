"""What each family takes, refuses and reports, and that numbers which are not finite end its jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from shared.messages import JobRequest, Task
from tests.engine import cases
from tests.engine.requests import GIVEN, clip, image_request, mask_clip, picture, request
from workers.engine import catalog, checkpoint
from workers.engine.course import Alone
from workers.engine.errors import AgreedFailure, NotServed
from workers.engine.families.wan_conditions.base import INPUTS
from workers.training.tiny_checkpoints import FAMILIES

Folders = Callable[[str], Path]
CARDS = {
    "wan21-t2v": ("wan2.1-t2v-1.3b", "wan2.1-t2v-14b"),
    "wan21-i2v": ("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"),
    "wan21-flf2v": ("wan2.1-flf2v-14b-720p",),
    "wan21-vace": ("wan2.1-vace-1.3b", "wan2.1-vace-14b"),
    "wan22-t2v": ("wan2.2-t2v-a14b",),
    "wan22-i2v": ("wan2.2-i2v-a14b",),
    "wan22-ti2v": ("wan2.2-ti2v-5b",),
    "wan22-vace": ("wan2.2-vace-fun-a14b",),
}


def filled(family: str, folder: Path) -> tuple[JobRequest, Path | None, dict[str, Any]]:
    """A request of what the family is for, and its inputs."""
    match family:
        case "wan21-flf2v":
            asked = request(task=Task.FIRST_LAST_FRAME_TO_VIDEO, image=GIVEN, last_image=GIVEN)
            return asked, picture(folder), {"last_image": picture(folder, seed=4)}
        case "wan21-vace" | "wan22-vace":
            return (
                request(task=Task.VIDEO_EDITING, video=GIVEN, mask=GIVEN),
                None,
                {"video": clip(), "mask": mask_clip()},
            )
        case "wan21-t2v" | "wan22-t2v":
            return request(task=Task.VIDEO_TO_VIDEO, video=GIVEN), None, {"video": clip()}
        case _:
            return image_request(), picture(folder), {}


@pytest.mark.parametrize("family", FAMILIES)
def test_card_checkpoint_and_conditions_agree_on_the_tasks(checkpoints: Folders, family: str) -> None:
    found = checkpoint.read(checkpoints(family))
    derived = catalog.derive(found)
    takes = cases.family(checkpoints(family), 1)._conditioner.takes
    assert set(takes) == set(derived.tasks)
    for name in CARDS[family]:
        card = catalog.entry(name).card
        assert set(card.tasks) == set(derived.tasks)
        assert card.also_takes == derived.also_takes
        for field in ("strength", "control_scale", "guidance_scale_2"):
            assert (getattr(card, field) is None) == (getattr(derived, field) is None), field
        for field in ("width", "height", "num_frames"):
            allowed, possible = getattr(card, field), getattr(derived, field)
            assert allowed.multiple_of % possible.multiple_of == 0
            assert allowed.offset == possible.offset
        assert (card.fps.default, card.num_frames.default) == (derived.fps.default, derived.num_frames.default)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_is_taken_needed_or_refused_by_name(checkpoints: Folders, family: str) -> None:
    model = cases.family(checkpoints(family), 1)
    for task, takes in model._conditioner.takes.items():
        full: dict[str, Any] = {
            name: (GIVEN,) if name == "references" else GIVEN for name in (*takes.needs, *takes.may)
        }
        full = {name: given for name, given in full.items() if name in INPUTS}
        frames = 1 if task == Task.TEXT_TO_IMAGE else 5
        model.check(request(task=task, num_frames=frames, **full))
        for name in INPUTS:
            if name in takes.needs:
                with pytest.raises(NotServed, match=f"{name}: {task} needs one"):
                    model.check(request(task=task, num_frames=frames, **{**full, name: None}))
            elif name not in takes.may:
                more = (GIVEN,) if name == "references" else GIVEN
                with pytest.raises(NotServed, match=f"{name}: not among what {task} takes"):
                    model.check(request(task=task, num_frames=frames, **{**full, name: more}))


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("wan21-i2v", {"task": Task.VIDEO_TO_VIDEO, "video": GIVEN}, "task: "),
        ("wan22-ti2v", {"width": 144}, "size: 144x64 .* multiple of 32"),
        ("wan21-t2v", {"num_frames": 6}, "num_frames: 6 is not of the form"),
        ("wan21-t2v", {"guidance_scale_2": 3.0}, "guidance_scale_2: .* one expert"),
        (
            "wan21-t2v",
            {"task": Task.VIDEO_TO_VIDEO, "video": GIVEN, "strength": 0.1},
            "strength: .* nothing would change",
        ),
        ("wan21-t2v", {"strength": 0.5}, "strength: not among"),
        ("wan21-vace", {"control_scale": 0.5}, "control_scale: not among"),
        ("wan21-vace", {"task": Task.VIDEO_EDITING}, "video: video-editing needs a clip, references, or both"),
        ("wan21-vace", {"task": Task.VIDEO_EDITING, "references": (GIVEN,), "mask": GIVEN}, "mask: there is no video"),
        (
            "wan21-flf2v",
            {"task": Task.FIRST_LAST_FRAME_TO_VIDEO, "image": GIVEN, "last_image": GIVEN, "num_frames": 1},
            "num_frames: a first and a last frame",
        ),
    ],
)
def test_what_a_family_cannot_do_names_the_field(
    checkpoints: Folders, family: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(NotServed, match=says):
        cases.family(checkpoints(family), 1).check(request(**changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_that_are_not_finite_fail_the_job_for_that_reason(
    checkpoints: Folders, tmp_path: Path, family: str
) -> None:
    """As of weights that overflow: the denoiser's output, at the second step."""
    model = cases.family(checkpoints(family), 1)
    asked, image, inputs = filled(family, tmp_path)
    asked = replace(asked, steps=4)
    usual, calls = model._model, [0]

    def overflowing(conditions: Any) -> Any:
        denoiser = usual(conditions)

        def broken(*args: Any) -> Any:
            calls[0] += 1
            return denoiser(*args) * (float("inf") if calls[0] > 2 else 1.0)

        return broken

    model._model = overflowing  # type: ignore[method-assign]
    try:
        job = cases.job_of(asked, model.check(asked), image, **inputs)
        with pytest.raises(AgreedFailure, match="not finite: the latents after step") as caught:
            model.run(job, cases._course(Alone()))
    finally:
        model._model = usual  # type: ignore[method-assign]
        model.forget()
    assert (caught.value.reason, caught.value.refused) == ("engine_error", False)
    # Two calls to a step, and none after the step that showed it.
    assert calls[0] == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_warms_up_and_makes_a_file(checkpoints: Folders, tmp_path: Path, family: str) -> None:
    model = cases.family(checkpoints(family), 1)
    model.warm_up()
    asked, image, inputs = filled(family, tmp_path)
    job = replace(cases.job_of(replace(asked, steps=2), model.check(asked), image, **inputs), out_dir=tmp_path)
    made = model.run(job, cases._course(Alone()))
    (file,) = made.files
    assert (file.media_type, file.width, file.height, file.num_frames) == ("video/mp4", 128, 64, 5)
    assert (tmp_path / file.name).stat().st_size > 0
    assert {"encode_text_s", "encode_image_s", "denoise_s", "decode_s"} <= made.used.keys()
