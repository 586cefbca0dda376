"""The step cache: which steps it skips, that all ranks decide alike, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from shared.messages import AttentionCache, JobRequest, Layout, StepCache
from tests.engine import cases
from tests.engine.requests import image_request, picture, request
from tests.support.gloo import Gloo
from workers.engine import devices
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.acceleration.step_cache import Blocks, Skipper, install, is_on
from workers.engine.course import Alone, Course, Silent
from workers.engine.parallel.mesh import Place
from workers.engine.stages import denoise

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]

#: Skips nothing, and asks at every step.
NEVER = StepCache(threshold=1e-9)


class Asked(NamedTuple):
    """What the skipper was asked at a step of a branch: how much the first block has changed, and what it said."""

    step: int
    branch: int
    change: float
    skips: bool


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What this process's skippers are asked from now on."""
    made: list[Asked] = []
    usual = Skipper._is_alike

    def is_alike(skipper: Skipper, residual: Tensor, before: Tensor) -> bool:
        skips = usual(skipper, residual, before)
        change = float((residual - before).abs().sum() / before.abs().sum())
        made.append(Asked(skipper.step, skipper._view.branch, change, skips))
        return skips

    monkeypatch.setattr(Skipper, "_is_alike", is_alike)
    return made


def changes(folder: Path, asked: JobRequest, answers: list[Asked]) -> dict[tuple[int, int], float]:
    """By how much the first block changes from the step before to each, by step and branch, if nothing is skipped.
    Tests take their thresholds from it: a figure written down here is another one for the next tiny checkpoint."""
    answers.clear()
    assert cases.alone(folder, replace(asked, step_cache=NEVER)).skipped == 0
    found = {(answer.step, answer.branch): answer.change for answer in answers}
    answers.clear()
    return found


def check(alone: cases.Outcome, made: list[list[tuple[Layout, cases.Outcome]]]) -> None:
    for rank, layouts in enumerate(made):
        for layout, outcome in layouts:
            assert np.abs(outcome.latents - alone.latents).max() == 0.0, (rank, layout)
    for layout, outcome in made[0]:
        assert outcome.skipped == alone.skipped, layout


@pytest.mark.parametrize("world", [2, 4])
def test_any_layout_skips_the_same_steps_with_the_same_result(
    gloo: Groups, checkpoints: Folders, answers: list[Asked], world: int
) -> None:
    """The range begins at a step that changes more than the next one, and the threshold is between: the first is
    computed, and therefore the second skipped."""
    folder = checkpoints("wan21-t2v")
    asked = request(steps=10)
    found = changes(folder, asked, answers)
    first = max(range(1, 9), key=lambda step: found[step, 0] - found[step + 1, 0])
    threshold = (found[first, 0] + found[first + 1, 0]) / 2
    asked = replace(asked, step_cache=StepCache(threshold=threshold, start_step=first, end_step=9))
    alone = cases.alone(folder, asked)
    assert [answer.skips for answer in answers if answer.branch == 0][:2] == [False, True]
    made = gloo(world).run(cases.together, folder, asked)
    assert {(layout.cfg, layout.ulysses) for layout, _ in made[0]} >= {(2, world // 2), (1, world), (1, 1)}
    check(alone, made)
    assert np.abs(alone.latents - cases.alone(folder, replace(asked, step_cache=None)).latents).max() > 0


def test_with_sharded_weights(gloo: Groups, checkpoints: Folders, answers: list[Asked]) -> None:
    """The halves of guidance skip different steps, and yet go through the same exchanges."""
    folder = checkpoints("wan21-t2v")
    asked = request(steps=10, prompt="a ball", negative_prompt="zoom in on the sun while the sea moves left " * 3)
    found = changes(folder, asked, answers)
    threshold = (found[2, 0] + found[2, 1]) / 2
    asked = replace(asked, step_cache=StepCache(threshold=threshold, start_step=2, end_step=9))
    alone = cases.alone(folder, asked)
    skips = {(answer.step, answer.branch): answer.skips for answer in answers}
    assert skips[2, 0] != skips[2, 1]
    check(alone, gloo(2).run(cases.together, folder, asked, fsdp=True))


def test_two_experts_an_uneven_sequence_and_both_caches(gloo: Groups, checkpoints: Folders, tmp_path: Path) -> None:
    folder = checkpoints("wan22-i2v")
    caches = {"step_cache": StepCache(threshold=0.5), "cache": AttentionCache(start_step=1, interval=3, end_step=8)}
    asked = image_request(steps=10, width=80, height=48, num_frames=17, **caches)
    image = picture(tmp_path, 80, 48)
    alone = cases.alone(folder, asked, image)
    assert alone.skipped > 0
    assert alone.reused > 0
    check(alone, gloo(2).run(cases.together, folder, asked, image))


def test_a_threshold_of_nothing_and_a_range_of_nothing_do_nothing(checkpoints: Folders) -> None:
    folder = checkpoints("wan21-t2v")
    plain = cases.alone(folder, request())
    for setting in (
        StepCache(threshold=0.0),
        StepCache(threshold=1.0, start_step=3),
        StepCache(threshold=1, end_step=1),
    ):
        assert not is_on(setting, 3)
        made = cases.alone(folder, request(step_cache=setting))
        assert made.skipped == 0
        assert np.array_equal(made.latents, plain.latents)


def test_a_job_leaves_nothing_to_the_next(checkpoints: Folders) -> None:
    folder = checkpoints("wan21-t2v")
    asked = request(steps=6, step_cache=StepCache(threshold=1.0))
    first = cases.alone(folder, asked)
    assert first.skipped == 5
    skipper = cases.family(folder, 1)._sequences[0].skipper
    assert not skipper._kept
    assert np.array_equal(cases.alone(folder, asked).latents, first.latents)
    plain = cases.alone(folder, request())
    assert np.array_equal(plain.latents, cases.alone(folder, request(step_cache=StepCache(threshold=0.0))).latents)


class Still:
    """A view of a sequence of three tokens on one rank."""

    place, branch, length, group = Place(), 0, 3, None


class Toy(nn.Module):
    """Three blocks which each add what they are told, and an output norm."""

    class Block(nn.Module):
        adds = 0.0
        runs = 0

        def forward(self, tokens: Tensor) -> Tensor:
            self.runs += 1
            return tokens + self.adds

    def __init__(self) -> None:
        super().__init__()
        self.made = tuple(self.Block() for _ in range(3))
        self.blocks = nn.ModuleList(self.made)
        self.norm_out = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm_out(tokens.float())
        return out


def walk(first_adds: list[float], setting: StepCache) -> tuple[list[float], list[int], Skipper]:
    """Outputs of steps in which the first block adds these amounts, the others always ten; runs of the blocks."""
    toy, view = Toy(), Still()
    made = list(toy.made)
    skipper = Skipper(view)
    install(toy, skipper)
    assert isinstance(toy.blocks, Blocks)
    assert list(toy.blocks) == made
    skipper.begin(setting, len(first_adds), sharded=False)
    outs = []
    for skipper.step, adds in enumerate(first_adds):
        first, *others = made
        first.adds = adds
        for block in others:
            block.adds = 10.0 * (1 + skipper.step)
        outs.append(float(toy(torch.zeros(1, 3, 4))[0, 0, 0]))
    # Walks outside of a forward see the blocks as they are, in the middle of a job too.
    assert list(toy.blocks) == made
    return outs, [block.runs for block in made], skipper


def test_the_change_is_measured_from_the_last_step_that_computed_all() -> None:
    # 1.0 → 1.04 → 1.08 → 1.12: each step is near the one before it, the fourth is not near the first.
    outs, runs, skipper = walk([1.0, 1.04, 1.08, 1.12, 1.16], StepCache(threshold=0.1))
    assert outs == pytest.approx([21.0, 21.04, 21.08, 81.12, 81.16])
    assert runs == [5, 2, 2]
    assert skipper.skipped == {0: 3}


def test_only_steps_in_the_range_are_skipped_and_the_border_is_not_alike() -> None:
    outs, runs, _ = walk([1.0] * 6, StepCache(threshold=0.1, start_step=2, end_step=4))
    assert outs == [21.0, 41.0, 41.0, 41.0, 101.0, 121.0]
    assert runs == [6, 4, 4]
    assert walk([1.0, 1.5], StepCache(threshold=0.5))[1] == [2, 2, 2]
    assert walk([1.0, float("nan")], StepCache(threshold=0.5))[1] == [2, 2, 2]


def test_continuing_elsewhere(checkpoints: Folders) -> None:
    """From every step at which the rule allows it the job ends where the whole one ends; the rule is not empty."""
    folder = checkpoints("wan21-t2v")
    model = cases.family(folder, 1)
    course = Course(Alone(), Silent(), devices.open_device("cpu").is_out_of_memory)
    setting = StepCache(threshold=1.0, start_step=2, end_step=5)
    asked = request(steps=7, step_cache=setting)
    job = cases.job_of(asked, model.check(asked), None)
    conditions = model.conditions(job, model.texts(asked, course), course)

    def states(start: denoise.DenoiseState) -> list[denoise.DenoiseState]:
        place = model.prepare(job.layout, Cache(None, asked.steps), asked)
        return [start, *model.denoising(asked, start, conditions, place, course)]

    whole = states(model.start(asked, asked.seed, conditions))
    assert model._skipped() > 0
    fine = [step for step in range(7) if denoise.can_continue(step, None, 7, setting)]
    assert fine == [0, 1, 5, 6]
    for step in fine:
        assert torch.equal(states(whole[step])[-1].latents, whole[-1].latents)
    assert not torch.equal(states(whole[3])[-1].latents, whole[-1].latents)


def test_continuing_with_both_caches() -> None:
    cache = AttentionCache(start_step=1, interval=3, end_step=8)
    # The attention cache alone allows 0, 1, 4, 7 and from 9 on; steps 4 to 7 may be skipped.
    skips = StepCache(threshold=0.1, start_step=4, end_step=8)
    assert [s for s in range(12) if denoise.can_continue(s, cache, 12, skips)] == [0, 1, 9, 10, 11]
    off = StepCache(threshold=0.0)
    assert [s for s in range(12) if denoise.can_continue(s, cache, 12, off)] == [0, 1, 4, 7, 9, 10, 11]
