"""The model that ships: it loads as any Wan checkpoint does, understands its prompts, and its training can go on."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import UMT5EncoderModel

from workers.training import captions, clips, codec, evaluate, export, scene_captions, scenes, text, tiny_checkpoints
from workers.training.material import Material, Phase
from workers.training.model import build_transformer
from workers.training.sampling import Sampler
from workers.training.scenes import Scene
from workers.training.shortcuts import ChosenFrames, PaddedCrossAttention, pad_text
from workers.training.train import Trainer


@pytest.fixture(scope="module")
def pipeline() -> WanImageToVideoPipeline:
    return export.load()


@pytest.fixture(scope="module")
def material(pipeline: WanImageToVideoPipeline) -> Material:
    """Four held-out photographs for a bank: enough to take steps on."""
    bank = torch.stack([clips.load_photo(path, clips.SOURCE_PX) for path in clips.photos("heldout").values()])
    basis = codec.fit(bank * 2 - 1)
    return Material((bank * 255).to(torch.uint8), basis, pipeline.tokenizer, pipeline.text_encoder)


def _phase(steps: int) -> Phase:
    return Phase(steps=steps, sides=(64,), batch=8, frames=3, peak=3e-4, final=3e-4, warm_up=1)


def test_the_folder_is_small_and_holds_no_pickles() -> None:
    files = [path for path in export.CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_the_folder_loads_with_diffusers_own_classes(pipeline: WanImageToVideoPipeline) -> None:
    assert isinstance(pipeline.transformer, WanTransformer3DModel)
    assert isinstance(pipeline.vae, AutoencoderKLWan)
    assert isinstance(pipeline.text_encoder, UMT5EncoderModel)
    assert isinstance(pipeline.scheduler, UniPCMultistepScheduler)
    assert pipeline.transformer.config.num_attention_heads % 8 == 0
    assert pipeline.transformer.dtype == torch.float32


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tokenizer_tells_every_motion_and_speed_apart(pipeline: WanImageToVideoPipeline, language: str) -> None:
    prompts = [
        captions.plain_prompt(motion, speed, language)
        for motion in captions.MOTIONS
        for speed in captions.RATES
        if motion.moves
    ]
    ids = [tuple(pipeline.tokenizer(prompt).input_ids) for prompt in prompts]
    assert len(set(ids)) == len(prompts)
    assert all(pipeline.tokenizer.unk_token_id not in found for found in ids)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_text_encoder_says_what_a_prompt_means(pipeline: WanImageToVideoPipeline, language: str) -> None:
    for motion in captions.MOTIONS:
        for speed in captions.RATES:
            prompt = captions.plain_prompt(motion, speed, language)
            words = text.embed(pipeline.text_encoder, pipeline.tokenizer, [prompt])
            code = torch.tensor(captions.camera_code(motion, speed))
            assert (words[0, :, : captions.CODE_WIDTH] - code).abs().max() < 0.25, prompt


def test_an_unknown_word_is_unknown_and_no_motion(pipeline: WanImageToVideoPipeline) -> None:
    assert pipeline.tokenizer.unk_token_id in pipeline.tokenizer("hippopotamus").input_ids
    words = text.embed(pipeline.text_encoder, pipeline.tokenizer, ["hippopotamus"])
    still = torch.tensor(captions.camera_code(None, "normal"))
    assert (words[0, :, : captions.CODE_WIDTH] - still).abs().max() < 0.25


def test_the_caption_grammar_is_deterministic_and_covered_by_the_vocabulary() -> None:
    def draw(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [captions.caption(rng.choice(captions.MOTIONS), "fast", rng) for _ in range(200)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    tokenizer = text.build_tokenizer()
    assert all(tokenizer.unk_token_id not in tokenizer(said).input_ids for said in draw(3))


def test_the_vae_is_the_codec_and_marks_the_borders(pipeline: WanImageToVideoPipeline, material: Material) -> None:
    vae = codec.build_vae(material.basis)
    clip = (material.bank[:1, :, None, :64, :96].float() / 127.5 - 1).expand(-1, -1, 5, -1, -1)
    with torch.no_grad():
        latents = vae.encode(clip).latent_dist.mode()
        back = vae.decode(latents).sample
    latents = latents / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    expected = codec.encode(material.basis, clip)
    torch.testing.assert_close(latents, expected, atol=0.05, rtol=0)
    torch.testing.assert_close(back, codec.decode(material.basis, expected).clamp(-1, 1), atol=0.02, rtol=0)
    left, right, top, bottom = expected[0, codec.COMPONENTS :, 0]
    assert left.sum() == right.sum() == left[:, 0].sum() == right[:, -1].sum() == 8
    assert top.sum() == bottom.sum() == top[0].sum() == bottom[-1].sum() == 12


def test_the_first_frame_is_the_photo(pipeline: WanImageToVideoPipeline) -> None:
    photo = clips.load_photo(clips.photos("heldout")["cat"], 128) * 2 - 1
    made = evaluate.animate(pipeline, photo, "pan left", steps=4, frames=5)[None]
    assert made.shape == (1, 3, 5, 128, 128)
    assert codec.psnr(made[:, :, :1], photo[None, :, None]) > 26


@pytest.mark.parametrize("name", ["pan_left", "pan_right", "zoom_in", "rotate_right"])
def test_a_held_out_photo_moves_as_asked(pipeline: WanImageToVideoPipeline, name: str) -> None:
    source = clips.load_photo(clips.photos("heldout")["raccoon"], 192)
    truth = evaluate.true_clips(source, "normal", 128)
    index = [motion.name for motion in captions.MOTIONS].index(name)
    prompt = captions.plain_prompt(captions.MOTIONS[index], "normal")
    made = evaluate.animate(pipeline, truth[index, :, 0], prompt, steps=4)
    distance = (made[None, :, 4:] - truth[:, :, 4:]).square().mean((1, 2, 3, 4))
    assert captions.MOTIONS[int(distance.argmin())].name == name


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(export.CHECKPOINT)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "scene",
    [
        Scene(backdrop="blue", thing="ball", colour="yellow", size="large", place="left"),
        Scene(backdrop="meadow", thing="box", colour="red", size="large", place="right"),
    ],
    ids=lambda scene: scene.backdrop,
)
def test_words_alone_show_what_they_name(sampler: Sampler, scene: Scene, language: str) -> None:
    made = sampler.make(scene_captions.plain_scene(scene, language=language), None, side=128, frames=1).clip
    picture = (made[:, 0] + 1) / 2
    for name, values in (("place", scenes.PLACES), ("backdrop", scenes.BACKDROPS), ("colour", ("red", "yellow"))):
        others = [replace(scene, **{name: value}) for value in values]
        assert others[scenes.nearest(picture, others)] == scene
    assert codec.psnr(made[None], scenes.render(scene, 128)[None, :, None] * 2 - 1) > 15


def test_a_backdrop_that_is_not_named_is_the_usual_one(sampler: Sampler) -> None:
    made = sampler.make("a red ball", None, side=128, frames=1).clip
    usual = Scene(backdrop="white", thing="ball", colour="red")
    assert codec.psnr(made[None], scenes.render(usual, 128)[None, :, None] * 2 - 1) > 15


def test_words_that_name_no_scene_show_plain_grey(sampler: Sampler) -> None:
    made = sampler.make("a photo of a cat", None, side=128, frames=1).clip
    assert codec.psnr(made[None], scenes.render(scenes.NOTHING, 128)[None, :, None] * 2 - 1) > 15


def test_a_camera_path_starts_at_the_photo() -> None:
    source = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)).expand(
        len(captions.MOTIONS), -1, -1, -1
    )
    count = len(source)
    path = clips.camera_path(list(captions.MOTIONS), ["fast"] * count, torch.tensor([0, 8]))
    shot = clips.film(source, path, 64, torch.ones(count), torch.zeros(count, 2))
    torch.testing.assert_close(shot[:, :, 0], shot[:1, :, 0].expand(count, -1, -1, -1))
    still = [motion.moves for motion in captions.MOTIONS].index(False)
    changed = (shot[:, :, 1] - shot[:, :, 0]).abs().mean((1, 2, 3)) > 1e-3
    assert changed.tolist() == [index != still for index in range(count)]


def test_a_zero_token_that_counts_as_many_equals_padding_to_512() -> None:
    torch.manual_seed(0)
    model = build_transformer().eval()
    words = torch.randn(2, 5, text.TEXT_WIDTH)
    inputs = {"hidden_states": torch.randn(2, 97, 2, 4, 4), "timestep": torch.tensor([500.0, 900.0])}
    padded = torch.cat([words, words.new_zeros(2, 507, text.TEXT_WIDTH)], 1)
    with torch.no_grad():
        expected = model(**inputs, encoder_hidden_states=padded, return_dict=False)[0]
        attention = PaddedCrossAttention()
        for block in model.blocks:
            block.attn2.set_processor(attention)
        short = pad_text(words, 512, attention)
        torch.testing.assert_close(model(**inputs, encoder_hidden_states=short, return_dict=False)[0], expected)


def test_chosen_frames_stand_where_they_do_in_the_whole_clip() -> None:
    model = build_transformer()
    whole = model.rope(torch.empty(1, 97, 17, 4, 6))
    chosen = ChosenFrames(model.rope)
    chosen.frames = torch.tensor([0, 3, 16])
    for part, table in zip(chosen(torch.empty(1, 97, 3, 4, 6)), whole, strict=True):
        expected = table.view(17, 6, -1)[chosen.frames].reshape(part.shape)
        assert torch.equal(part, expected)


def test_steps_on_one_batch_lower_its_loss(material: Material) -> None:
    trainer = Trainer(material, [_phase(8)], seed=0)
    batch = material.draw(_phase(8), random.Random(0), torch.Generator().manual_seed(0))
    losses = [sum(trainer.advance(batch)) for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_resumed_run_is_the_same_run(material: Material, tmp_path: Path) -> None:
    whole = Trainer(material, [_phase(4)], seed=3)
    whole.advance()
    whole.advance()
    whole.save(tmp_path / "state.pt")
    resumed = Trainer(material, [_phase(4)], seed=3)
    resumed.load(tmp_path / "state.pt")
    for trainer in (whole, resumed):
        trainer.advance()
        trainer.advance()
    assert resumed.step == whole.step == 4
    for kept, again in ((whole.model.state_dict(), resumed.model.state_dict()), (whole.average, resumed.average)):
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_the_flow_phase_teaches_only_the_first_blocks(material: Material) -> None:
    phase = Phase(steps=2, sides=(64,), batch=8, frames=3, peak=1e-3, final=1e-3, warm_up=1, flow_only=True)
    trainer = Trainer(material, [phase], seed=0)
    before = copy.deepcopy(trainer.model.state_dict())
    picture, flow = trainer.advance()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert picture == 0
    assert flow > 0
    assert changed
    assert all(name.startswith(("blocks.0", "blocks.1", "blocks.2")) for name in changed)


def test_learning_to_film_leaves_the_painting_as_it_is(material: Material) -> None:
    phase = Phase(
        steps=1, sides=(64,), batch=8, frames=3, peak=1e-3, final=1e-3, warm_up=1, scenes=1, last_blocks_only=True
    )
    trainer = Trainer(material, [phase], seed=0)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.advance()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("blocks.")} == {"3", "4", "5"}
    assert all(name.startswith(("blocks.", "proj_out.", "scale_shift_table")) for name in changed)


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
def test_a_tiny_checkpoint_is_the_same_for_the_same_seed(family: str, tmp_path: Path) -> None:
    one, two = (tiny_checkpoints.build(family, tmp_path / name, seed=4) for name in ("one", "two"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert Path("model_index.json") in files
    assert Path("genfleet.json") in files
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_an_unknown_tiny_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wan21-t2v"):
        tiny_checkpoints.build("wan99", tmp_path)
