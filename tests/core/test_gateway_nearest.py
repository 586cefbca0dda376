"""A seed's client keeps working on a model that it was not written for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.nearest import adapted
from gateway.resolve import Offer, resolve
from gateway.schema.requests import ParallelBody, SubmitBody
from shared.messages import IntRange, Layout
from tests.support.gateway import CARD

ONE = Offer(layout=Layout(), full_width=1)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ("256x144", "256x144"),
        ("1280x720", "512x288"),
        ("512x512", "384x384"),
        ("10x10", "64x64"),
        ("250x150", "256x144"),
    ],
)
def test_a_size_keeps_its_shape(asked: str, made: str) -> None:
    assert adapted(SubmitBody(prompt="a", size=asked), CARD, ()).size == made


def test_frames_steps_and_the_rest_move_to_the_nearest() -> None:
    asked = SubmitBody(
        prompt="a", num_frames=121, steps=100, guidance_scale=0.5, shift=30, solver="dpm++", fps=60, seed=7
    )
    made = adapted(asked, CARD, ())
    assert (made.num_frames, made.steps, made.guidance_scale, made.shift) == (81, 50, 1.0, 20.0)
    assert (made.solver, made.fps, made.seed) == (None, 30, 7)


def test_what_is_left_out_stays_the_models_choice() -> None:
    assert adapted(SubmitBody(prompt="a"), CARD, (ONE,)) == SubmitBody(prompt="a")


def test_a_layout_that_nobody_offers_is_dropped() -> None:
    asked = SubmitBody(prompt="a", parallel=ParallelBody(ulysses_size=8, dit_fsdp=True))
    eight = Offer(layout=Layout(ulysses=8, dit_fsdp=True), full_width=8)
    assert adapted(asked, CARD, (ONE,)).parallel == ParallelBody()
    assert adapted(asked, CARD, (ONE, eight)).parallel == asked.parallel
    assert adapted(asked, CARD, ()).parallel == asked.parallel


@given(
    st.integers(1, 99999),
    st.integers(1, 99999),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.floats(0, 1000),
    st.integers(8, 64),
)
def test_whatever_was_asked_is_then_served(
    width: int, height: int, frames: int, steps: int, scale: float, multiple: int
) -> None:
    card = replace(
        CARD,
        width=IntRange(min=64, max=1024, default=64, multiple_of=multiple),
        height=IntRange(min=64, max=1024, default=64, multiple_of=multiple),
        max_pixels=300_000,
    )
    body = SubmitBody(
        prompt="a",
        task="text-to-video",
        size=f"{width}x{height}",
        num_frames=max(2, frames),
        steps=steps,
        guidance_scale=scale,
        shift=scale,
    )
    made = resolve(adapted(body, card, (ONE,)), card, {}, (ONE,), 0, "m")
    assert made.width * made.height <= card.max_pixels
