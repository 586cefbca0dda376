"""Where the text encoder is changes nothing; what is kept of its work is bounded and the same on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.engine import cases
from tests.engine.requests import request
from tests.support.gloo import Gloo, Ranks
from workers.engine import devices
from workers.engine.families.wan import Wan
from workers.engine.opening import open_model
from workers.engine.stages.encode_text import TextEncoder
from workers.pool import Pool, PoolError, PoolLayout, parse

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]
Placement = Literal["device", "cpu", "fsdp"]
PROMPTS = ("pan left", "", "a  long\n prompt about a red ball &amp; a blue one", "zoom in")


def opened(ranks: Ranks, folder: Path, placement: Placement) -> Wan:
    pool = Pool(model=str(folder), width=ranks.world, text_encoder=placement)
    model = open_model(pool, devices.open_device("cpu"), cases.mesh(ranks.world))
    assert isinstance(model, Wan)
    return model


def embeddings(ranks: Ranks, folder: Path, placement: Placement) -> tuple[bool, np.ndarray[Any, Any], cases.Array]:
    """Whether this rank has the encoder, the prompts' embeddings, and the latents of a job."""
    model = opened(ranks, folder, placement)
    encoder = model._encode_text
    made = torch.cat(encoder.keep(encoder.encode(PROMPTS)))
    job = cases.job_of(request(), model.layouts[0], None)
    outcome = cases.outcome(model, job, cases._course(cases.lockstep(ranks)))
    return encoder.model is not None, made.numpy(), outcome.latents


@pytest.mark.parametrize("placement", ["device", "cpu", "fsdp"])
def test_embeddings_are_the_same_wherever_they_are_made(
    gloo: Groups, checkpoints: Folders, placement: Placement
) -> None:
    folder = checkpoints("wan21-t2v")
    alone = opened(Ranks(0, 1), folder, "device")
    expected = torch.cat(alone._encode_text.keep(alone._encode_text.encode(PROMPTS))).numpy()
    latents = cases.alone(folder, request()).latents
    for rank, (has_encoder, made, of_job) in enumerate(gloo(2).run(embeddings, folder, placement)):
        assert has_encoder is (placement != "cpu" or rank == 0)
        np.testing.assert_array_equal(made, expected)
        np.testing.assert_array_equal(of_job, latents)


class Counting:
    """A text encoder whose embeddings say how often it was asked."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        self.lengths.append(ids.shape[1])
        made = torch.full((1, ids.shape[1], 8), float(len(self.lengths)), dtype=torch.bfloat16)
        return type("Output", (), {"last_hidden_state": made})


def encoder(checkpoints: Folders, model: Counting, kept_bytes: int) -> TextEncoder:
    tokenizer = cases.family(checkpoints("wan21-t2v"), 1)._encode_text._tokenizer
    host = torch.device("cpu")
    return TextEncoder(tokenizer, model, host, 16, 8, run_on=host, kept_bytes=kept_bytes)


def test_a_prompt_is_encoded_once_at_its_true_length(checkpoints: Folders) -> None:
    model = Counting()
    encode = encoder(checkpoints, model, 1 << 20)
    (first, empty) = encode.keep(encode.encode(("pan left", "")))
    assert first.shape == empty.shape == (1, 16, 8)
    assert all(length < 16 for length in model.lengths)
    assert (first[0, : model.lengths[0]] == 1).all()
    assert not first[0, model.lengths[0] :].any()
    (again, other) = encode.keep(encode.encode(("  pan\tleft ", "pan left right")))
    assert torch.equal(again, first)
    assert len(model.lengths) == 3
    assert other.dtype == torch.float32
    assert encode.kept_bytes == sum(model.lengths) * 8 * 4


def test_what_is_kept_has_a_bound_in_bytes_and_the_longest_unused_goes_first(checkpoints: Folders) -> None:
    model = Counting()
    encode = encoder(checkpoints, model, 1 << 20)
    encode.keep(encode.encode(("pan left",)))
    encode._kept_bytes = 2 * encode.kept_bytes
    encode.keep(encode.encode(("zoom left",)))
    assert model.lengths[0] == model.lengths[1]
    encode.keep(encode.encode(("pan left",)))
    assert len(model.lengths) == 2
    encode.keep(encode.encode(("tilt left",)))
    assert encode.kept_bytes <= encode._kept_bytes
    encode.keep(encode.encode(("pan left",)))
    assert len(model.lengths) == 3
    encode.keep(encode.encode(("zoom left",)))
    assert len(model.lengths) == 4


def test_nothing_is_kept_before_all_ranks_have_it(checkpoints: Folders) -> None:
    model = Counting()
    encode = encoder(checkpoints, model, 1 << 20)
    encode.encode(("pan left",))
    assert encode.kept_bytes == 0
    encode.keep(encode.encode(("pan left", "pan left")))
    assert len(model.lengths) == 2


def test_the_two_words_for_a_sharded_encoder_mean_the_same() -> None:
    assert parse('model = "m"\nwidth = 2\ntext_encoder = "fsdp"').layout == PoolLayout(t5_fsdp=True)
    assert parse('model = "m"\nwidth = 2\n[layout]\nt5_fsdp = true').text_encoder == "fsdp"
    for text in (
        'text_encoder = "disk"',
        'text_encoder = "cpu"\n[layout]\nt5_fsdp = true',
        'text_encoder = "cpu"\noffload = "model"',
    ):
        with pytest.raises(PoolError, match="text_encoder"):
            parse(f'model = "m"\nwidth = 2\n{text}')
