"""What a pool's accelerators do to the result: fused projections, compiled blocks, parts that take turns, 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from shared.messages import AttentionCache, StepCache
from tests.engine import cases
from tests.engine.requests import image_request, picture, request
from tests.support.gloo import Gloo, Ranks
from workers.engine import devices
from workers.engine.acceleration import compiling, offload, projections
from workers.engine.acceleration.offload import HOST, Residency
from workers.engine.course import Alone
from workers.engine.devices.base import Device
from workers.engine.direct import Direct
from workers.engine.errors import CannotLoad
from workers.engine.families.wan import Wan
from workers.engine.opening import open_model
from workers.link import Done
from workers.pool import Pool

Folders = Callable[[str], Path]
CACHES: dict[str, Any] = {
    "cache": AttentionCache(start_step=0, interval=2, end_step=3),
    "step_cache": StepCache(threshold=0.2),
}


def opened(folder: Path, device: Device | None = None, world: int = 1, **settings: Any) -> Wan:
    pool = Pool(model=str(folder), width=world, **settings)
    model = open_model(pool, device or devices.open_device("cpu"), cases.mesh(world))
    assert isinstance(model, Wan)
    return model


def made(model: Wan, **changes: Any) -> np.ndarray[Any, Any]:
    asked = request(**changes)
    return cases.outcome(model, cases.job_of(asked, model.check(asked)), cases._course(Alone())).latents


def relative(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# --- fused projections ----------------------------------------------------------------------------------------------


def test_fused_projections_give_the_same_to_rounding_and_follow_changes_of_the_weights(checkpoints: Folders) -> None:
    folder = checkpoints("wan21-t2v")
    plain, fused = opened(folder), opened(folder, fuse_qkv=True)
    assert relative(made(fused), made(plain)) < 1e-5
    assert fused._applied.used == {"attention": "sdpa", "fuse_qkv": True}
    for model in (plain, fused):
        attention = model._transformers[0].blocks[1].attn1
        assert list(dict(attention.named_parameters())) == list(
            dict(plain._transformers[0].blocks[1].attn1.named_parameters())
        )
        attention.to_k.weight.mul_(1.5)
        attention.to_v.bias.add_(0.5)
    changed = made(plain)
    assert relative(made(fused), changed) < 1e-5


# --- compiled blocks ------------------------------------------------------------------------------------------------


class Counting:
    """A backend that runs what it is given as it is, and counts the codes it was given."""

    def __init__(self) -> None:
        self.codes = 0

    def __call__(self, graph: Any, _inputs: list[Tensor]) -> Any:
        self.codes += 1
        return graph.forward


def compiled(model: Wan, backend: Any) -> Wan:
    torch._dynamo.reset()
    for transformer, sequence in zip(model._transformers, model._sequences, strict=True):
        sequence.project = compiling.compile_blocks(transformer.blocks, backend)
    return model


def test_compiled_blocks_share_their_code_and_take_every_cache_and_size(checkpoints: Folders) -> None:
    folder = checkpoints("wan22-i2v")
    plain, counting = cases.family(folder, 1), Counting()
    model = compiled(opened(folder), counting)
    jobs: list[dict[str, Any]] = [{"steps": 4}, {"steps": 4, **CACHES}, {"width": 96, "height": 96, "num_frames": 9}]
    for changes in (*jobs, {"width": 160}, *jobs):
        asked = replace(image_request(), **changes)
        image = picture(Path(folder).parent, asked.width, asked.height)
        job = cases.job_of(asked, model.check(asked), image)
        ours = cases.outcome(model, job, cases._course(Alone())).latents
        theirs = cases.outcome(plain, job, cases._course(Alone())).latents
        assert np.array_equal(ours, theirs), changes
    # Two halves of a block around its self-attention, and the projections: once for the first size, once for all.
    assert counting.codes <= 2 * 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of inductor's own imports
def test_inductor(checkpoints: Folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real compiler on the smaller of the two codes, if there is one: rounds elsewhere, and nothing more."""
    why_not = compiling.missing("cpu")
    if why_not:
        pytest.skip(why_not)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    transformer = cases.family(checkpoints("wan21-t2v"), 1)._transformers[0]
    project = compiling.compile_blocks([], "inductor")
    x = torch.randn(1, 12, 96, generator=torch.Generator().manual_seed(1))
    arguments = (transformer.blocks[0].attn1, x, transformer.rope(torch.zeros(1, 16, 1, 6, 8)))
    with torch.no_grad():
        for ours, theirs in zip(project(*arguments), projections.project(*arguments), strict=True):
            assert float((ours - theirs).abs().max()) < 1e-5
    torch._dynamo.reset()


def compiled_layouts(ranks: Ranks, folder: Path) -> float:
    """The largest difference that compiled blocks make, over the layouts of sharded weights."""
    from workers.pool import PoolLayout

    plain = cases.family(folder, ranks.world, fsdp=True)
    model = compiled(opened(folder, world=ranks.world, layout=PoolLayout(dit_fsdp=True, t5_fsdp=True)), "eager")
    worst = 0.0
    for layout in model.layouts:
        job = cases.job_of(request(steps=2), layout)
        both = [cases.outcome(each, job, cases._course(cases.lockstep(ranks))).latents for each in (model, plain)]
        worst = max(worst, float(np.abs(both[0] - both[1]).max()))
    return worst


def test_compiled_blocks_in_every_layout_with_sharded_weights(
    gloo: Callable[[int], Gloo], checkpoints: Folders
) -> None:
    assert gloo(2).run(compiled_layouts, checkpoints("wan21-t2v")) == [0.0, 0.0]


def test_where_nothing_can_be_compiled_it_says_so(monkeypatch: pytest.MonkeyPatch, checkpoints: Folders) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CannotLoad, match=r"compile: there is no C\+\+ compiler"):
        opened(checkpoints("wan21-t2v"), compile=True)
    assert compiling.missing("npu") == "not for npu"


# --- parts that take turns ------------------------------------------------------------------------------------------


class Small(Device):
    """A card that holds one part: what is sent to the host is spoilt where it was, and what runs must be on it."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.most = 0

    def move(self, module: nn.Module, to: torch.device) -> None:
        if to is HOST:  # the card is the host too, by another object
            self.held.discard(id(module))
        else:
            self.held.add(id(module))
        self.most = max(self.most, len(self.held))
        before = [*module.parameters(), *module.buffers()]
        module._apply(lambda t: t.clone())
        assert before


def watched(folder: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> tuple[Wan, Small, list[str]]:
    """A model on a small card, and the parts in the order in which they ran there."""
    card, order = Small(), list[str]()
    usual = offload.turns

    def turns(wanted: Any, components: Any, device: Device, **_: Any) -> Residency | None:
        residency = usual(wanted, components, device, card.move)
        assert residency is not None
        for name, part in residency._parts.items():

            def on_run(_module: nn.Module, _args: Any, name: str = name, part: nn.Module = part) -> None:
                assert id(part) in card.held, name
                if order[-1:] != [name]:
                    order.append(name)

            for module in (part, *part.children()):
                module.register_forward_pre_hook(on_run)
        return residency

    with monkeypatch.context() as patch:
        patch.setattr(offload, "turns", turns)
        return opened(folder, card, offload=setting), card, order


@pytest.mark.parametrize(
    ("setting", "order"),
    [
        ("experts", ["transformer", "transformer_2"]),
        ("model", ["text_encoder", "vae", "transformer", "transformer_2", "vae"]),
    ],
)
def test_only_the_part_that_runs_is_on_the_card(
    checkpoints: Folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, order: list[str]
) -> None:
    folder, image = checkpoints("wan22-i2v"), picture(tmp_path)
    asked = image_request(steps=5)
    model, card, ran = watched(folder, monkeypatch, setting)
    for turn in range(2):
        ours = cases.outcome(model, cases.job_of(asked, model.check(asked), image), cases._course(Alone()))
        exact = cases.alone(folder, asked, image)
        assert np.array_equal(ours.latents, exact.latents)
        assert np.array_equal(ours.frames, exact.frames)
        # The second job's prompt is known: its encoder stays where it is.
        expected = order if turn == 0 else [name for name in order if name != "text_encoder"]
        assert ran == expected
        ran.clear()
    assert card.most == 1
    residency = model._applied.residency
    assert residency is not None
    assert residency.here == order[-1]


def test_clip_takes_its_turn(checkpoints: Folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, image = checkpoints("wan21-i2v"), picture(tmp_path)
    asked = image_request()
    model, card, ran = watched(folder, monkeypatch, "model")
    ours = cases.outcome(model, cases.job_of(asked, model.check(asked), image), cases._course(Alone()))
    assert np.array_equal(ours.latents, cases.alone(folder, asked, image).latents)
    assert set(ran) == {"text_encoder", "vae", "image_encoder", "transformer"}
    assert card.most == 1


def test_turns_of_experts_need_two(checkpoints: Folders) -> None:
    with pytest.raises(CannotLoad, match="offload: this model has one expert only"):
        opened(checkpoints("wan21-t2v"), offload="experts")
    assert offload.on_host("experts", 1) == ()
    assert offload.on_host("none", 2) == ()


# --- 8 bits ---------------------------------------------------------------------------------------------------------


def test_weights_in_8_bits(checkpoints: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao", reason="the extra `quant` is not installed")
    folder = checkpoints("wan21-t2v")
    model = opened(folder, quant="int8")
    block = model._transformers[0].blocks[0]
    plain = cases.family(folder, 1)._transformers[0].blocks[0]
    assert block.ffn.net[2].weight.element_size() in (1, 4)
    assert sum(t.numel() for t in block.parameters()) == sum(t.numel() for t in plain.parameters())
    difference = relative(made(model), made(cases.family(folder, 1)))
    assert 0 < difference < 0.05
    exact = made(model)
    block._apply(lambda t: t.clone())
    assert np.array_equal(made(model), exact)


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, checkpoints: Folders) -> None:
    import importlib.util

    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else usual(name, *a))
    with pytest.raises(CannotLoad, match=r"quant: torchao is not installed \(genfleet\[quant\]\)"):
        opened(checkpoints("wan21-t2v"), quant="int8")


def test_the_card_offers_the_pools_caches_and_a_job_says_what_it_used(checkpoints: Folders, tmp_path: Path) -> None:
    pool = Pool(model=str(checkpoints("wan21-t2v")), attention="sdpa-math", offload="model", **CACHES)
    direct = Direct(pool)
    assert (direct.card.cache, direct.card.step_cache) == (CACHES["cache"], CACHES["step_cache"])
    done = direct.run(request(steps=4, **CACHES), {}, tmp_path)
    assert isinstance(done, Done)
    told = {name: done.used[name] for name in ("attention", "offload", "cached_steps", "skipped_steps")}
    assert told == {"attention": "sdpa-math", "offload": "model", "cached_steps": 2, "skipped_steps": 3}


def test_projections_are_diffusers_own(checkpoints: Folders) -> None:
    """Ours against ``WanAttnProcessor`` on one block."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    transformer: Any = opened(checkpoints("wan21-t2v"))._transformers[0]
    attention = transformer.blocks[0].attn1
    x = torch.randn(1, 12, 96, generator=torch.Generator().manual_seed(1))
    rotary = transformer.rope(torch.zeros(1, 16, 1, 6, 8))
    with torch.no_grad():
        theirs = WanAttnProcessor()(attention, x, None, None, rotary)
        q, k, v = projections.project(attention, x, rotary)
        ours = attention.to_out[0](devices.open_device("cpu").attention(q, k, v).flatten(2))
    assert torch.equal(ours, theirs)
