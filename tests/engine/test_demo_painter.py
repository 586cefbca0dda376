"""How the demo model is taught to paint a first frame that is not given: the sketch, kept streams, units, rounds."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.demo_training import heldout_material
from workers.training import painter, scenes, sketch, text
from workers.training.material import Material, Phase
from workers.training.model import CONTENT, build_transformer
from workers.training.scenes import Scene
from workers.training.train import Trainer

_FEED_FORWARD = ("0.proj.weight", "0.proj.bias", "2.weight")
SUN = Scene(backdrop="sea", thing="sun", colour="yellow")
BALL = Scene(backdrop="white", thing="ball", colour="red", place="left")


@pytest.fixture(scope="module")
def material() -> Material:
    return heldout_material()


def test_a_token_is_told_where_it_is_and_how_large() -> None:
    small, large = scenes.told(BALL, 4), scenes.told(BALL, 2)
    assert small.shape == (16, scenes.TOLD)
    assert small[0, :5].tolist() == pytest.approx([-0.75, -0.75, -0.3, -0.87, 1.25])
    assert large[0, :5].tolist() == pytest.approx([-0.5, -0.5, -0.05, -0.62, 3.25])
    assert torch.equal(small[:, 5:], torch.tensor(scenes.scene_code(BALL)).expand(16, -1))


def test_a_sketch_learns_what_tokens_show_and_is_the_same_for_the_same_seed() -> None:
    def mean_colours(pictures: Tensor) -> Tensor:
        """Content of which only three channels are used."""
        means = torch.nn.functional.avg_pool2d(pictures, 16).flatten(2).transpose(1, 2)
        return torch.nn.functional.pad(means, (0, CONTENT - 3))

    def cost(error: Tensor) -> Tensor:
        return error.square().sum(-1)

    lesson = sketch.Lesson(
        draw=scenes.draw_scene,
        content=mean_colours,
        cost=cost,
        sides=(32, 64),
        steps=3,
        pool=96,
        tokens=512,
    )
    (one, first), (two, again) = sketch.teach(lesson, 3), sketch.teach(lesson, 3)
    longer, left = sketch.teach(replace(lesson, steps=90), 3)
    told = scenes.told(SUN, 4)
    assert torch.equal(one(told), two(told))
    assert first == again
    assert left < first / 3
    wanted = mean_colours(scenes.render(SUN, 64)[None])[0]
    assert cost(longer(told) - wanted).mean() < cost(wanted).mean() / 4


@pytest.fixture(scope="module")
def painted(material: Material) -> Trainer:
    """A trainer that has begun to paint and made six steps of it."""
    phase = Phase(
        steps=60, sides=(64,), batch=40, frames=1, peak=3e-4, final=1e-4, warm_up=1, paint_only=True, sketched=25
    )
    trainer = Trainer(material, [phase], seed=0)
    for _ in range(6):
        trainer.advance()
    return trainer


def test_the_painter_learns_and_nothing_but_its_units_changes(painted: Trainer) -> None:
    losses = [painted.advance()[0] for _ in range(8)]
    assert losses[-1] < losses[0]
    after, before = painted.model.state_dict(), painted.painting.before.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {f"blocks.{n}.ffn.net.{part}" for n in range(3) for part in _FEED_FORWARD}
    for name in changed:
        others = (slice(None), slice(-sketch.UNITS)) if name.endswith("2.weight") else (slice(-sketch.UNITS),)
        assert torch.equal(after[name][others], before[name][others])


def test_kept_streams_end_as_the_model_ends(material: Material) -> None:
    phase = Phase(steps=1, sides=(64,), batch=10, frames=1, peak=0, final=0, paint_only=True)
    trainer = Trainer(material, [phase], seed=0)
    painting, generator = trainer.painting, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in painting.units.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    painting.units.write(trainer.model)
    ends: list[Tensor] = []
    trainer.model.blocks[2].register_forward_hook(lambda _m, _a, out: ends.append(out))
    kept = next(painting._shown(phase, (1, 1, 1, 1), random.Random(1), generator))
    with torch.no_grad():
        made = painting.units(kept.rows(torch.arange(len(kept))))
        without = kept.rows(torch.arange(len(kept))).entering
    end = ends[0].flatten(0, 1)
    assert (made - end).square().mean() < 1e-3 * (end - without).square().mean()  # half precision, and bfloat16


def test_units_are_closed_over_photos(painted: Trainer) -> None:
    painting = painted.painting
    sums = [painting.units.sums(n, closed.float()) for n, closed in enumerate(painting._closed)]
    shown = painting._streams
    assert shown is not None
    tokens = shown.rows(torch.arange(len(shown)))
    opened = painting.units.sums(0, painting.units.reads(0, tokens.entering, tokens.level))
    assert all((each > -2).float().mean() < 0.02 for each in sums)
    assert (opened > -2).float().mean() > 0.3


def test_painting_goes_on_after_a_stop_as_if_there_had_been_none(
    painted: Trainer, material: Material, tmp_path: Path
) -> None:
    painted.save(tmp_path / "state.pt")
    resumed = Trainer(material, painted.phases, seed=0)
    resumed.load(tmp_path / "state.pt")
    assert [resumed.advance() for _ in range(2)] == [painted.advance() for _ in range(2)]
    ours, theirs = painted.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_units_at_rest_do_nothing() -> None:
    torch.manual_seed(0)
    model = build_transformer().eval()
    painter.rest(model)
    inputs = {
        "hidden_states": torch.randn(1, 97, 1, 4, 4),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": torch.randn(1, 3, text.TEXT_WIDTH),
    }
    with torch.no_grad():
        expected = model(**inputs, return_dict=False)[0]
        for block in model.blocks:
            block.ffn.net[0].proj.bias[-sketch.UNITS :] = 5
        assert torch.equal(model(**inputs, return_dict=False)[0], expected)
