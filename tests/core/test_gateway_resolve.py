"""From a client's words and a model's card to the engine's request."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.resolve import UNANNOUNCED, Offer, integer, nearest, resolve
from gateway.schema.requests import CacheBody, ParallelBody, StepCacheBody, SubmitBody
from shared.errors import InvalidRequest
from shared.messages import (
    AttentionCache,
    Input,
    IntRange,
    JobRequest,
    Layout,
    LoraUse,
    ModelCard,
    Parallel,
    StepCache,
)
from tests.support.gateway import CARD

IMAGE = Input(key="inputs/default/aa", media_type="image/png", size=10, sha256="aa")


def resolved(
    *offers: Offer,
    image: Input | None = None,
    last_image: Input | None = None,
    seed: int = 7,
    card: ModelCard = CARD,
    **fields: object,
) -> JobRequest:
    body = msgspec.convert({"prompt": "a cat", **fields}, SubmitBody)
    inputs = {name: file for name, file in (("image", image), ("last_image", last_image)) if file is not None}
    return resolve(body, card, inputs, offers, seed, card.name)


def refused(*offers: Offer, **fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        resolved(*offers, **fields)  # type: ignore[arg-type]
    return caught.value


def test_what_is_left_out_takes_the_cards_default() -> None:
    assert resolved() == JobRequest(
        model="wan-demo",
        task="text-to-video",
        prompt="a cat",
        negative_prompt="blurry",
        width=256,
        height=144,
        num_frames=17,
        fps=8,
        steps=8,
        guidance_scale=5.0,
        shift=3.0,
        solver="unipc",
        seed=7,
        output_format="mp4",
    )


def test_what_is_given_is_taken() -> None:
    request = resolved(
        size="320x160",
        num_frames=21,
        fps=12,
        steps=3,
        guidance_scale=1.5,
        shift=2.0,
        solver="euler",
        seed=99,
        n=2,
        negative_prompt="",
        cache=CacheBody(start_step=1, interval=2, end_step=6),
    )
    assert (request.width, request.height, request.num_frames, request.fps, request.steps) == (320, 160, 21, 12, 3)
    assert (request.guidance_scale, request.shift, request.solver, request.seed) == (1.5, 2.0, "euler", 99)
    assert (request.n, request.negative_prompt) == (2, "")
    assert request.cache == AttentionCache(start_step=1, interval=2, end_step=6)


def test_a_lora_is_one_of_the_models() -> None:
    card = replace(CARD, loras=("film-grain", "rain"))
    assert resolved().loras == ()
    asked = resolved(card=card, loras=[{"name": "rain", "weight": 0.5}, {"name": "film-grain"}])
    assert asked.loras == (LoraUse(name="rain", weight=0.5), LoraUse(name="film-grain"))
    refusal = refused(card=card, loras=[{"name": "rain"}, {"name": "snow"}])
    assert (refusal.field, "film-grain, rain" in str(refusal)) == ("loras.1.name", True)
    assert "none" in str(refused(loras=[{"name": "rain"}]))
    assert "twice" in str(refused(card=card, loras=[{"name": "rain"}, {"name": "rain"}]))


@pytest.mark.parametrize("name", ["/models/x.safetensors", "../x", "https://example.com/x", "a b", "", "x" * 65])
def test_a_path_or_url_is_no_name_of_a_model_or_lora(name: str) -> None:
    for fields in ({"model": name}, {"loras": [{"name": name}]}):
        with pytest.raises(msgspec.ValidationError):
            resolved(card=replace(CARD, loras=(name,)), **fields)


def test_a_step_cache_is_the_jobs_own_or_the_cards() -> None:
    of_card = StepCache(threshold=0.08, start_step=2, end_step=30)
    card = replace(CARD, step_cache=of_card)
    assert resolved().step_cache is None
    assert resolved(card=card).step_cache == of_card
    off = resolved(card=card, step_cache=StepCacheBody(threshold=0))
    assert off.step_cache == StepCache(threshold=0, start_step=0, end_step=None)


@pytest.mark.parametrize(
    ("fields", "image", "task", "frames", "output_format"),
    [
        ({}, None, "text-to-video", 17, "mp4"),
        ({}, IMAGE, "image-to-video", 17, "mp4"),
        ({"num_frames": 1}, None, "text-to-image", 1, "png"),
        ({"num_frames": 1}, IMAGE, "image-to-video", 1, "mp4"),
        ({"task": "text-to-image"}, None, "text-to-image", 1, "png"),
    ],
)
def test_the_task_is_inferred(
    fields: dict[str, object], image: Input | None, task: str, frames: int, output_format: str
) -> None:
    request = resolved(image=image, **fields)  # type: ignore[arg-type]
    assert (request.task, request.num_frames, request.output_format) == (task, frames, output_format)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"task": "video-to-video"}, "task", "wan-demo does text-to-video, image-to-video, text-to-image"),
        ({"task": "text-to-image", "num_frames": 5}, "num_frames", "one frame"),
        ({"task": "image-to-video"}, "image", "needs one"),
        ({"task": "text-to-video", "image": IMAGE}, "image", "takes none"),
        ({"last_image": IMAGE}, "task", "say which task"),
        ({"size": "100x144"}, "size", "width must be a multiple of 16, from 64 to 512, not 100; nearest: 96"),
        ({"size": "256x2000"}, "size", "height must be"),
        ({"size": "512x512"}, "size", "262144 pixels; at most 147456"),
        ({"num_frames": 20}, "num_frames", "a multiple of 4 plus 1, from 1 to 81, not 20; nearest: 21"),
        ({"num_frames": 500}, "num_frames", "nearest: 81"),
        ({"fps": 31}, "fps", "from 1 to 30"),
        ({"steps": 51}, "steps", "from 1 to 50"),
        ({"guidance_scale": 0.5}, "guidance_scale", "from 1 to 20"),
        ({"shift": 0.0}, "shift", "from 0.1 to 20"),
        ({"solver": "heun"}, "solver", "one of unipc, euler"),
        ({"n": 5}, "n", "at most 4"),
        ({"output_format": "gif"}, "output_format", "mp4"),
        ({"task": "text-to-image", "output_format": "mp4"}, "output_format", "png, jpeg, webp"),
        ({"task": "text-to-image", "output_quality": 80}, "output_quality", "jpeg or webp"),
        ({"task": "text-to-image", "output_format": "png", "output_quality": 80}, "output_quality", "jpeg or webp"),
        ({"output_format": "mp4", "output_quality": 80}, "output_quality", "jpeg or webp"),
        ({"dummy": {"step_s": 0.1}}, "dummy", "dummy model"),
        ({"cache": CacheBody(start_step=5, interval=2, end_step=4)}, "cache.end_step", "before"),
        ({"step_cache": StepCacheBody(threshold=0.1, start_step=5, end_step=4)}, "step_cache.end_step", "before"),
    ],
)
def test_what_cannot_be_served_is_refused_by_field(fields: dict[str, object], field: str, says: str) -> None:
    error = refused(**fields)
    assert error.field == field
    assert says in str(error)


def test_a_layout_that_is_on_offer_is_taken() -> None:
    offer = Offer(layout=Layout(cfg=2, ulysses=4, vae_parallel=True), full_width=8)
    request = resolved(offer, parallel=ParallelBody(ulysses_size=4, vae_parallel=True))
    assert request.parallel == Parallel(ulysses_size=4, vae_parallel=True)


def test_a_layout_that_nobody_offers_is_refused_with_those_on_offer() -> None:
    offers = (
        Offer(layout=Layout(cfg=2, ulysses=1), full_width=2),
        Offer(layout=Layout(cfg=1, ulysses=2, vae_parallel=True), full_width=2),
    )
    error = refused(*offers, parallel=ParallelBody(ulysses_size=8))
    assert error.field == "parallel"
    assert "on offer: cfg_size 1 ulysses_size 2 vae_parallel; cfg_size 2 ulysses_size 1" in str(error)


def test_a_layout_waits_for_a_group_that_has_become_narrower() -> None:
    narrowed = Offer(layout=Layout(cfg=1, ulysses=1), full_width=4)
    assert resolved(narrowed, parallel=ParallelBody(ulysses_size=4)).parallel == Parallel(ulysses_size=4)
    assert refused(narrowed, parallel=ParallelBody(ulysses_size=8)).field == "parallel"


def test_a_layout_waits_while_no_worker_is_known() -> None:
    assert resolved(parallel=ParallelBody(cfg_size=2)).parallel == Parallel(cfg_size=2)


def test_a_model_that_nobody_announced_takes_common_values() -> None:
    request = resolve(SubmitBody(prompt="x"), UNANNOUNCED, {}, (), 1, "wan-14b")
    assert (request.model, request.width, request.height, request.num_frames) == ("wan-14b", 832, 480, 81)


@given(
    low=st.integers(0, 100),
    span=st.integers(0, 200),
    multiple=st.integers(1, 32),
    offset=st.integers(0, 31),
    asked=st.integers(-50, 400),
)
def test_the_nearest_value_is_allowed(low: int, span: int, multiple: int, offset: int, asked: int) -> None:
    allowed = IntRange(min=low, max=low + span + multiple, default=low, multiple_of=multiple, offset=offset)
    value = nearest(asked, allowed)
    assert integer(value, allowed, "x") == value
    served = range(allowed.min, allowed.max + 1)
    assert abs(value - asked) == min(abs(x - asked) for x in served if (x - offset) % multiple == 0)
