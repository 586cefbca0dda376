"""What the demo model's training draws for text-to-video, moving things and parallax, and how it is examined."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.support.demo_training import heldout_material
from workers.engine.checkpoint import IMAGINED
from workers.training import (
    captions,
    clips,
    codec,
    examine_layers,
    examine_scenes,
    layers,
    meaning,
    scene_captions,
    scenes,
    sweep,
    text,
)
from workers.training.material import Material, Phase, film_scenes
from workers.training.meaning import COURSES, MEANING_WIDTH, STILL, Meaning
from workers.training.model import FLOW_WIDTH
from workers.training.scenes import Scene

SUN = Scene(backdrop="sea", thing="sun", colour="yellow")
BALL = Scene(backdrop="white", thing="ball", colour="red", place="left")


@pytest.fixture(scope="module")
def material() -> Material:
    return heldout_material()


def test_scenes_are_the_same_for_the_same_seed_and_never_what_is_examined() -> None:
    def draw(seed: int, *, train: bool) -> list[Scene]:
        rng = random.Random(seed)
        return [scenes.draw_scene(rng, train=train) for _ in range(150)]

    assert draw(1, train=True) == draw(1, train=True)
    assert draw(1, train=True) != draw(2, train=True)
    assert not set(draw(1, train=True)) & set(draw(3, train=False))
    assert all(scene.thing is not None and not scenes.may_train(scene) for scene in draw(3, train=False))


@pytest.mark.parametrize("thing", scenes.THINGS)
def test_a_thing_is_seen_where_and_how_it_is_named(thing: str) -> None:
    scene = Scene(backdrop="white", thing=thing, colour="red", size="large")
    picture, empty = scenes.render(scene, 64), scenes.render(replace(scene, thing=None), 64)
    changed = (picture - empty).abs().amax(0) > 0.1
    assert 0.02 < changed.float().mean() < 0.35
    small = (scenes.render(replace(scene, size="small"), 64) - empty).abs().amax(0) > 0.1
    assert small.sum() < changed.sum()
    middle = changed.nonzero()[:, 1].float().mean()
    aside = (
        ((scenes.render(replace(scene, place="left"), 64) - empty).abs().amax(0) > 0.1).nonzero()[:, 1].float().mean()
    )
    assert middle == pytest.approx(31.5, abs=1)
    assert aside == pytest.approx(31.5 * (1 + scenes.PLACES["left"]), abs=1.5)


def test_a_picture_is_nearest_to_its_own_scene_in_every_property() -> None:
    for name, values in examine_scenes.PROPERTIES.items():
        scene = Scene(backdrop="snow", thing="box", colour="purple")
        candidates = [replace(scene, **{name: value}) for value in values]
        noisy = scenes.render(scene, 64) + 0.1 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
        assert candidates[scenes.nearest(noisy, candidates)] == scene


def test_what_lies_around_the_frame_does_not_change_the_frame() -> None:
    whole = scenes.render(SUN, 96, 1.5)
    torch.testing.assert_close(whole[:, 16:-16, 16:-16], scenes.render(SUN, 64), atol=0.02, rtol=0)


def test_a_scene_is_filmed_as_a_photo_is() -> None:
    motions = [captions.BY_NAME["pan_left"], STILL]
    path = clips.camera_path(motions, ["normal"] * 2, torch.tensor([0, 8]))
    shot = film_scenes([BALL, BALL], path, 64)
    torch.testing.assert_close(shot[:, :, 0], (scenes.render(BALL, 64) * 2 - 1).expand(2, -1, -1, -1), atol=0.1, rtol=0)
    torch.testing.assert_close(shot[1, :, 1], shot[1, :, 0])
    # The camera goes left by 16 px, so the ball goes right.
    torch.testing.assert_close(shot[0, :, 1, :, 16:], shot[0, :, 0, :, :-16], atol=0.02, rtol=0)


def test_what_need_not_be_named_is_often_left_out() -> None:
    rng = random.Random(8)
    drawn = [scene_captions.draw_scene(rng) for _ in range(600)]
    assert all(scenes.may_train(scene) for scene in drawn)
    assert all(scene.thing is None or scenes.stands_out(scene) for scene in drawn)
    usual = [s for s in drawn if s.thing and s.backdrop == scene_captions.default_backdrop(s.thing, s.colour)]
    assert len(usual) > 50
    said = [scene_captions.describe(scene, rng, language="en") for scene in usual]
    unnamed = [not any(word in words for word in (" background", " wall", " on white", " on black")) for words in said]
    assert 0.3 < sum(unnamed) / len(unnamed) < 0.9


def test_a_prompt_without_a_photo_may_name_no_scene(material: Material) -> None:
    phase = Phase(steps=1, sides=(64,), batch=40, frames=2, peak=0, final=0, paint_only=True)
    batch = material.draw(phase, random.Random(1), torch.Generator().manual_seed(1))
    unnamed = [number for number, scene in enumerate(batch.scenes) if scene is None]
    assert 0 < len(unnamed) < len(batch.scenes) / 4
    assert not batch.things[unnamed].any()
    still = codec.encode(material.basis, scenes.render(scenes.NOTHING, 64)[None, :, None] * 2 - 1)
    torch.testing.assert_close(batch.clean[unnamed[0], :, :1], still[0])
    given = material.draw(replace(phase, paint_only=False, scenes=1), random.Random(1), torch.Generator())
    assert None not in given.scenes
    assert given.mask.max() == 1


def test_every_caption_is_in_the_vocabulary_and_says_another_thing() -> None:
    tokenizer = text.build_tokenizer()
    rng = random.Random(4)
    drawn = [meaning.draw_meaning(rng) for _ in range(400)]
    said = [meaning.say(each, rng) for each in drawn]
    assert all(tokenizer.unk_token_id not in tokenizer(words).input_ids for words in said)
    assert all(len(tokenizer(words).input_ids) <= text.LONGEST for words in said)
    assert sum(each.scene is not None for each in drawn) > 100
    assert sum(each.parallax for each in drawn) > 5
    assert sum(each.course is not None for each in drawn) > 30


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examinations_words_tell_all_properties_apart(language: str) -> None:
    for name, values in examine_scenes.PROPERTIES.items():
        prompts = {scene_captions.plain_scene(replace(BALL, **{name: value}), None, language) for value in values}
        assert len(prompts) == len(values)


def test_a_meaning_has_a_code_of_its_own() -> None:
    meanings = [
        Meaning(),
        Meaning(motion=STILL),
        Meaning(motion=STILL, scene=BALL),
        Meaning(motion=STILL, scene=SUN),
        Meaning(motion=STILL, course="left", thing=("ball", "red")),
        Meaning(motion=STILL, course="up", speed="fast", thing=("ball", "red")),
        Meaning(motion=captions.BY_NAME["pan_left"]),
        Meaning(motion=captions.BY_NAME["pan_left"], parallax=True),
    ]
    codes = torch.tensor([each.code for each in meanings])
    assert codes.shape == (len(meanings), MEANING_WIDTH)
    apart = torch.cdist(codes, codes) + 9 * torch.eye(len(meanings))
    assert apart.min() > 0.5


def test_a_moving_thing_goes_its_course_and_the_rest_stays() -> None:
    asked = Meaning(motion=STILL, course="right", thing=("box", "blue"))
    shot, shift = layers.film(asked, torch.full((3, 96, 96), 0.8), torch.tensor([0, 4, 8]), random.Random(0))
    moving = (shot[0] - 0.6).abs().amax(0) > 0.3
    columns = [mask.nonzero()[:, 1].float().mean().item() for mask in moving]
    assert columns[1] - columns[0] == pytest.approx(4 * layers.THING_PX, abs=0.6)
    assert columns[2] - columns[0] == pytest.approx(8 * layers.THING_PX, abs=0.6)
    inside = shift.across[0, 2][moving[2]]
    assert inside.median() == pytest.approx(-8 * layers.THING_PX)
    assert shift.across[0, 2][~moving[2]].abs().max() <= 8 * layers.THING_PX
    assert not shift.down.any()


def test_near_rows_move_faster() -> None:
    asked = Meaning(motion=captions.BY_NAME["pan_right"], parallax=True)
    ramp = torch.linspace(0, 1, 96).expand(3, 96, 96)
    shot, shift = layers.film(asked, ramp, torch.tensor([0, 4]), random.Random(0))
    moved = (shot[0, 0, 1] - shot[0, 0, 0])[:, 16:-32].mean(1)
    assert moved[-1] / moved[0] == pytest.approx(layers.NEAR / layers.FAR, rel=0.05)
    assert shift.across[0, 1, -1, 0] == pytest.approx(4 * clips.PAN_PX * layers.NEAR)


@pytest.mark.parametrize("kind", ["scenes", "painted", "filmed", "layered"])
def test_a_batch_of_another_kind_has_the_shapes_of_any(material: Material, kind: str) -> None:
    plain = Phase(steps=1, sides=(64,), batch=2, frames=3, peak=0, final=0)
    phase = {
        "scenes": replace(plain, scenes=1),
        "painted": replace(plain, paint_only=True),
        "filmed": replace(plain, scenes=1, last_blocks_only=True),
        "layered": replace(plain, layered=1),
    }[kind]
    one, two = (material.draw(phase, random.Random(5), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.clean, two.clean)
    assert torch.equal(one.words, two.words)
    assert one.clean.shape == (8, codec.LATENT_CHANNELS, 3, 8, 8)
    assert one.flow.shape == (8, 3 * 16, FLOW_WIDTH)
    given = kind in ("scenes", "layered")
    assert (one.mask[:, :, 0] == (1.0 if given else IMAGINED)).all()
    assert not one.mask[:, :, 1:].any()
    shown = torch.equal(one.condition[:, :, 0], one.clean[:, :, 0])
    assert shown == given


def test_the_examinations_ask_for_what_was_never_shown() -> None:
    asked = examine_scenes.examined()
    assert len(asked) == 3 * len(captions.MOTIONS)
    assert asked == examine_scenes.examined()
    assert all(each.scene is not None and each.scene.thing in scenes.SHAPES for each in asked)
    for number in range(4):
        kinds = [each.parallax for each in examine_layers.asked_of(number)]
        assert kinds == [False] * len(COURSES) + [True] * len(COURSES)


def test_the_report_on_scenes_counts_what_was_taken_for_another() -> None:
    asked = {"motion": "still"} | {name: values[0] for name, values in examine_scenes.PROPERTIES.items()}
    right = examine_scenes.SceneScore(prompt="", asked=asked, taken_for=asked, first_psnr=20, psnr=18)
    wrong = replace(right, taken_for={**asked, "colour": "blue"})
    lines = examine_scenes.summary([right, wrong]).splitlines()
    colour = next(line for line in lines if line.startswith("colour"))
    assert "1/2" in colour
    assert "9 %" in colour
    assert "red for blue" in colour
    assert "2/2" in next(line for line in lines if line.startswith("thing"))


def test_the_sweep_compares_with_eight_exact_steps_also_if_not_asked_for() -> None:
    tried = sweep.ways((2, 4), caches=True)
    assert [way.steps for way in tried if way.name == "exact"] == [2, 4, 8]
    assert {way.steps for way in tried if way.cache or way.step_cache} == {8}
    assert [way.steps for way in sweep.ways((1, 8), caches=False)] == [1, 8]
