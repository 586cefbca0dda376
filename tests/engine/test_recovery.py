"""Row 28 and promise 6: memory runs out on one rank or on all, while encoding, denoising or decoding. The job ends
typed, or is decoded in tiles, and the same group does the next job as if nothing had been.

The fault is torch's own: an allocation that no address space holds, asked for inside one of the model's layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from msgspec import Struct
from msgspec.structs import replace

from shared.messages import JobRequest, Layout
from tests.engine import cases
from tests.engine.requests import image_request, picture, request
from tests.engine.test_out_of_memory import TOO_MANY
from tests.support.gloo import Gloo, Ranks
from tests.support.video import read_video
from workers.engine.course import Alone
from workers.engine.direct import Direct
from workers.engine.errors import AgreedFailure
from workers.engine.families.wan import Wan
from workers.link import Broke, Done

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]
Frames = npt.NDArray[np.uint8]

#: Where the memory runs out, by stage.
LAYERS: dict[str, Callable[[Any], Any]] = {
    "encode_text": lambda model: model._encode_text.model.encoder.block[0],
    "encode_image": lambda model: model._vae.encoder.mid_block,
    "denoise": lambda model: model._transformers[0].blocks[1].ffn,
    "decode": lambda model: model._vae.decoder.up_blocks[1].resnets[0].conv2,
}


class Allocator:
    """Lets the memory of a layer run out from its n-th call on, so many times."""

    def __init__(self, layer: Any, *, first: int = 0, times: int = 1) -> None:
        self._calls, self._first, self._left = 0, first, times
        self._hook = layer.register_forward_pre_hook(self._before)

    def _before(self, _module: object, _arguments: object) -> None:
        self._calls += 1
        if self._calls > self._first and self._left:
            self._left -= 1
            torch.empty(TOO_MANY)

    def remove(self) -> bool:
        """Whether the memory ran out as often as it should have."""
        self._hook.remove()
        return self._left == 0


class Seen(Struct):
    """What a rank saw: of the job in trouble its failure or its frames (rank 0), and the latents of the next job."""

    failure: str
    struck: bool
    frames: Frames | None
    tiled: int
    next: cases.Array


def in_trouble(
    ranks: Ranks,
    folder: Path,
    asked: JobRequest,
    layout: Layout,
    image: Path | None,
    out: Path,
    stage: str,
    on: tuple[int, ...],
    times: int = 1,
    fsdp: bool = False,
) -> Seen:
    model = cases.family(folder, ranks.world, fsdp)
    course = cases._course(cases.lockstep(ranks) if ranks.world > 1 else Alone())
    layout = next(
        each
        for each in model.layouts
        if (each.cfg, each.ulysses, each.ring) == (layout.cfg, layout.ulysses, layout.ring)
    )
    job = replace(cases.job_of(asked, layout, image), out_dir=out if ranks.rank == 0 else None)
    allocator = Allocator(LAYERS[stage](model), first=1, times=times) if ranks.rank in on else None
    model._encode_text._kept.clear()
    failure, frames, tiled = "", None, -1
    try:
        made = model.run(job, course)
        tiled = int(made.used["decoded_in_tiles"])
        frames = np.stack(read_video((out / made.files[0].name).read_bytes())) if made.files else None
    except AgreedFailure as agreed:
        failure = agreed.reason
        model.forget()
    struck = allocator is None or allocator.remove()
    return Seen(failure, struck, frames, tiled, cases.outcome(model, job, course).latents)


@pytest.mark.parametrize("on", [(1,), (0, 1)])
@pytest.mark.parametrize("stage", ["encode_text", "encode_image", "denoise"])
def test_the_job_fails_typed_and_the_group_does_the_next(
    gloo: Groups, checkpoints: Folders, tmp_path: Path, stage: str, on: tuple[int, ...]
) -> None:
    folder, image = checkpoints("wan21-i2v"), picture(tmp_path)
    alone = cases.alone(folder, image_request(), image)
    arguments = (folder, image_request(), Layout(ulysses=2), image, tmp_path, stage, on)
    for seen in gloo(2).run(in_trouble, *arguments):
        assert seen.struck
        assert seen.failure == "out_of_memory"
        np.testing.assert_array_equal(seen.next, alone.latents)


@pytest.mark.parametrize(
    "layout", [Layout(cfg=2, ulysses=2), Layout(cfg=2), Layout(ulysses=2, ring=2), Layout(cfg=2, ring=2), Layout()]
)
def test_one_rank_of_four_in_the_middle_of_denoising(
    gloo: Groups, checkpoints: Folders, tmp_path: Path, layout: Layout
) -> None:
    """Whoever waits for it, in its sequence or in the other half of guidance, does not wait for ever."""
    folder = checkpoints("wan21-t2v")
    alone = cases.alone(folder, request())
    for seen in gloo(4).run(in_trouble, folder, request(), layout, None, tmp_path, "denoise", (2,)):
        assert seen.failure == "out_of_memory"
        tolerance = 1e-5 * np.abs(alone.latents).max() if layout.ring > 1 else 0.0
        assert np.abs(seen.next - alone.latents).max() <= tolerance


@pytest.mark.parametrize("stage", ["denoise", "encode_text"])
def test_one_rank_of_two_with_sharded_weights(gloo: Groups, checkpoints: Folders, tmp_path: Path, stage: str) -> None:
    folder = checkpoints("wan21-t2v")
    alone = cases.alone(folder, request())
    arguments = (folder, request(), Layout(cfg=2), None, tmp_path, stage, (1,), 1, True)
    for seen in gloo(2).run(in_trouble, *arguments):
        assert seen.failure == "out_of_memory"
        np.testing.assert_array_equal(seen.next, alone.latents)


@pytest.mark.parametrize("on", [(0,), (1,), (0, 1)])
def test_an_output_is_decoded_in_tiles_the_second_time(
    gloo: Groups, checkpoints: Folders, tmp_path: Path, on: tuple[int, ...]
) -> None:
    """On any rank of a split decoder, after some frames are already in the file."""
    folder, asked = checkpoints("wan21-t2v"), request()
    (usual,) = gloo(2).run(in_trouble, folder, asked, Layout(), None, tmp_path, "decode", ())[:1]
    assert (usual.tiled, usual.failure) == (0, "")
    first, second = gloo(2).run(in_trouble, folder, asked, Layout(), None, tmp_path, "decode", on)
    assert (first.tiled, second.tiled) == (1, 1)
    assert first.struck
    assert first.frames is not None
    assert usual.frames is not None
    assert first.frames.shape == usual.frames.shape
    # H.264 makes more of a difference of one than there was.
    assert np.abs(first.frames.astype(int) - usual.frames.astype(int)).mean() < 0.05
    np.testing.assert_array_equal(first.next, usual.next)


def test_a_second_time_is_the_last(gloo: Groups, checkpoints: Folders, tmp_path: Path) -> None:
    arguments = (checkpoints("wan21-t2v"), request(), Layout(), None, tmp_path, "decode", (0,), 2)
    for seen in gloo(2).run(in_trouble, *arguments):
        assert (seen.failure, seen.struck) == ("out_of_memory", True)


@pytest.mark.parametrize(("stage", "times", "kind"), [("denoise", 1, Broke), ("decode", 1, Done), ("decode", 2, Broke)])
def test_a_group_of_one_answers_and_serves_on(
    checkpoints: Folders, tmp_path: Path, stage: str, times: int, kind: type[Done | Broke]
) -> None:
    direct = Direct(checkpoints("wan21-t2v"))
    assert isinstance(direct._family, Wan)
    allocator = Allocator(LAYERS[stage](direct._family), first=1, times=times)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    answer = direct.run(request(), {}, tmp_path / "first")
    assert allocator.remove()
    assert isinstance(answer, kind)
    if isinstance(answer, Broke):
        assert (answer.reason, answer.poisoned) == ("out_of_memory", False)
    else:
        assert answer.used["decoded_in_tiles"] == 1
    again = direct.run(request(), {}, tmp_path / "second")
    assert isinstance(again, Done)
    assert again.used["decoded_in_tiles"] == 0
