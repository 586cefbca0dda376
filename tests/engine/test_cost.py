"""The formulas of a forward's cost against what torch counts, with and without the caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.messages import AttentionCache, StepCache
from tests.engine import cases
from workers.engine.acceleration import cost
from workers.engine.acceleration.attention_cache import Cache, reused_steps
from workers.engine.acceleration.cost import WAN_14B, WAN_14B_I2V, Dit, Work
from workers.engine.families.wan import Wan

Folders = Callable[[str], Path]

#: 5 frames of 128×64: 2 latent frames of 4 × 8 tokens.
WORK = Work(tokens=64, text=512)


def sizes(model: Any) -> Dit:
    config = model.config
    return Dit(
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_size=config.attention_head_dim,
        ffn=config.ffn_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_width=config.text_dim,
        image_width=config.image_dim or 0,
        time_width=config.freq_dim,
        patch=tuple(config.patch_size),
    )


def forward(family: Wan, branch: int = 0, image: int = 0) -> None:
    """One forward of the first expert on fixed latents."""
    model = family._transformers[0]
    family._sequences[0].branch = branch
    generator = torch.Generator().manual_seed(5)
    config = model.config
    features = torch.randn(1, image, config.image_dim, generator=generator) if image else None
    with torch.no_grad():
        model(
            hidden_states=torch.randn(1, config.in_channels, 2, 8, 16, generator=generator),
            timestep=torch.tensor([700]),
            encoder_hidden_states=torch.randn(1, 512, config.text_dim, generator=generator),
            encoder_hidden_states_image=features,
            return_dict=False,
        )


def counted(do: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        do()
    return int(counter.get_total_flops())


@pytest.fixture
def formula_attention() -> Any:
    """torch counts attention only where it is made of matrix products: on CPU its flash kernel counts as nothing."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.usefixtures("formula_attention")
def test_a_forward(checkpoints: Folders) -> None:
    text, image = cases.family(checkpoints("wan21-t2v"), 1), cases.family(checkpoints("wan21-i2v"), 1)
    dit = sizes(text._transformers[0])
    assert counted(lambda: forward(text)) == cost.forward(dit, WORK)
    with_clip = Work(tokens=64, text=512, image=7)
    assert counted(lambda: forward(image, image=7)) == cost.forward(sizes(image._transformers[0]), with_clip)


@pytest.mark.usefixtures("formula_attention")
def test_a_job_with_the_attention_cache(checkpoints: Folders) -> None:
    family = cases.family(checkpoints("wan21-t2v"), 1)
    dit = sizes(family._transformers[0])
    setting, steps = AttentionCache(start_step=2, interval=3, end_step=9), 12
    cache = Cache(setting, steps)
    family.prepare(family.layouts[0], cache)

    def job() -> None:
        for cache.step in range(steps):
            forward(family, 0)
            forward(family, 1)

    made = counted(job)
    reusing = reused_steps(setting, steps)
    assert reusing == 5  # 3, 4, 6, 7, 9
    assert cache.reused == 2 * dit.layers * reusing
    whole = 2 * (steps - reusing) * cost.forward(dit, WORK)
    assert made == whole + 2 * reusing * cost.forward_reusing_attention(dit, WORK)
    cache.clear()
    family.prepare(family.layouts[0], Cache(None, 0))


@pytest.mark.usefixtures("formula_attention")
def test_a_job_with_the_step_cache(checkpoints: Folders) -> None:
    family = cases.family(checkpoints("wan21-t2v"), 1)
    dit = sizes(family._transformers[0])
    skipper = family._sequences[0].skipper
    family.prepare(family.layouts[0], Cache(None, 0))
    skipper.begin(StepCache(threshold=0.5, start_step=2, end_step=5), 6, sharded=False)

    def job() -> None:
        for skipper.step in range(6):
            forward(family)

    made = counted(job)
    assert skipper.skipped == {0: 3}  # 2, 3, 4: the input is always the same
    assert made == 3 * cost.forward(dit, WORK) + 3 * cost.forward_skipped(dit, WORK)
    family.prepare(family.layouts[0], Cache(None, 0))


def test_the_published_sizes() -> None:
    """Tokens, and PFLOP per forward with the attention's share, as ``docs/benchmarks/engine-gpu.md`` goes by them."""
    for (width, height), of_text, of_image, share in (
        ((1280, 720), 6.52, 6.54, 0.72),
        ((832, 480), 1.68, 1.69, 0.52),
    ):
        count = cost.tokens(width, height, 81)
        text, image = Work(tokens=count), Work(tokens=count, image=257)
        assert cost.forward(WAN_14B, text) / 1e15 == pytest.approx(of_text, abs=0.02)
        assert cost.forward(WAN_14B_I2V, image) / 1e15 == pytest.approx(of_image, abs=0.01)
        attention = WAN_14B.layers * cost.scores(WAN_14B, text)
        assert attention / cost.forward(WAN_14B, text) == pytest.approx(share, abs=0.01)
    assert (cost.tokens(1280, 720, 81), cost.tokens(832, 480, 81)) == (75_600, 32_760)
