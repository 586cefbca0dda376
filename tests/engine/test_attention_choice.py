"""Which kernel a pool gets: found, compared with the formula, measured; and what is told when one cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from tests.engine import cases
from tests.support.gloo import Gloo, Ranks
from workers.engine import devices, rank
from workers.engine.acceleration.attention_choice import Choice, Shape, Tried, choose, compare, settle, use
from workers.engine.devices.attention import Attention, SdpaMath
from workers.engine.devices.attention_packages import FlashAttention2, FlashAttention3, SageAttention, of_packages
from workers.engine.devices.base import Device, Kind
from workers.engine.errors import CannotLoad
from workers.engine.opening import open_model
from workers.engine.parallel.mesh import Mesh
from workers.link import CannotLoad as CannotLoadFrame
from workers.pool import Pool

SHAPE = Shape(tokens=64, heads=4, size=16)
STAND_INS = Path(__file__).parents[1] / "support" / "attention"
PACKAGES = ("flash_attn", "flash_attn_interface", "sageattention")


class Slow(Attention):
    """The formula, taking a stated time on a clock of its own."""

    def __init__(self, name: str, seconds: float, factor: float = 1.0, exact: bool = True) -> None:
        self.name, self.seconds, self._factor, self.is_exact = name, seconds, factor, exact
        self.gives_lse = False
        self.on_call: Callable[[float], None] = lambda _: None

    @override
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.on_call(self.seconds)
        return SdpaMath()(q, k, v) * self._factor


class Absent(Slow):
    @override
    def missing(self, device: torch.device, dtype: torch.dtype) -> str:
        return "is not installed"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Card(Device):
    """A device whose kernels are given; its tensors are the host's."""

    kind: Kind = "cuda"

    def __init__(self, *kernels: Attention, clock: Clock | None = None) -> None:
        self._kernels = kernels
        for one in kernels:
            if isinstance(one, Slow) and clock is not None:
                one.on_call = clock.spend

    @override
    def kernels(self) -> tuple[Attention, ...]:
        return self._kernels

    @override
    def synchronise(self) -> None:
        return None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The packages' stand-ins can be imported, and the device calls itself Hopper."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    yield
    for name in PACKAGES:
        sys.modules.pop(name, None)


def test_the_fastest_that_only_rounds_is_taken() -> None:
    clock = Clock()
    card = Card(
        Slow("first", 2.0), Slow("fast", 1.0), Slow("wrong", 0.1, factor=1.01), Slow("coarse", 0.1, exact=False),
        Absent("absent", 0.1), clock=clock,
    )  # fmt: skip
    choice = choose("auto", card, SHAPE, torch.float32, clock)
    assert choice.name == "fast"
    assert choice.told() == "attention fast (first 2e+03 ms, fast 1e+03 ms)"
    why = {one.name: one.why_not for one in choice.tried}
    assert why["wrong"].startswith("deviates by 0.01 from the formula, beyond its 1e-05")
    assert why["absent"] == "is not installed"
    assert "coarse" not in why
    use(choice, card)
    assert card.kernel.name == "fast"


def test_a_hair_faster_is_not_faster() -> None:
    clock = Clock()
    assert choose("auto", Card(Slow("a", 1.0), Slow("b", 0.98), clock=clock), SHAPE, torch.float32, clock).name == "a"


def test_one_that_fails_on_the_pools_own_shape_is_left_out() -> None:
    class Short(Slow):
        @override
        def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if k.shape[1] > 150:
                raise torch.OutOfMemoryError("no room for 9000 tokens\nmore")
            return super().__call__(q, k, v)

    clock = Clock()
    card = Card(Slow("a", 1.0), Short("short", 0.1), clock=clock)
    choice = choose("auto", card, Shape(tokens=200, heads=4, size=16), torch.float32, clock)
    assert choice.name == "a"
    assert choice.tried[1].why_not == "failed on 200 tokens: no room for 9000 tokens"


def test_a_named_one_is_taken_without_measuring_or_refused_with_the_reason() -> None:
    def no_clock() -> float:
        raise AssertionError("measured")

    card = Card(Slow("a", 1.0), Slow("coarse", 9.0, exact=False), Slow("wrong", 1.0, factor=2.0), Absent("absent", 1.0))
    assert choose("coarse", card, SHAPE, torch.float32, no_clock).name == "coarse"
    for name, told in (
        ("wrong", "attention: wrong deviates by 1 from the formula"),
        ("absent", "attention: absent is not installed"),
        ("other", "'other' is none of this device's kernels: a, coarse, wrong, absent"),
    ):
        with pytest.raises(CannotLoad, match=told):
            choose(name, card, SHAPE, torch.float32, no_clock)


def test_without_any_that_can_be_used_all_reasons_are_told() -> None:
    card = Card(Absent("a", 1.0), Slow("b", 1.0, factor=float("nan")))
    with pytest.raises(CannotLoad, match="a is not installed; b deviates by nan"):
        choose("auto", card, SHAPE, torch.float32)


def test_a_cpu_takes_torchs_own_and_any_of_its_kernels_by_name() -> None:
    device = devices.open_device("cpu")
    assert choose("auto", device, SHAPE, torch.float32).name == "sdpa"
    for name in ("sdpa-math", "sdpa-flash"):
        use(choose(name, device, SHAPE, torch.float32), device)
        assert device.kernel.name == name
    with pytest.raises(CannotLoad, match="sdpa-cudnn takes float16 and bfloat16 only"):
        choose("sdpa-cudnn", device, SHAPE, torch.float32)


def test_packages_that_are_not_there_say_so() -> None:
    for kernel in of_packages():
        assert isinstance(kernel, FlashAttention2 | FlashAttention3 | SageAttention)
        assert kernel.missing(torch.device("cpu"), torch.bfloat16) == "runs on CUDA only"
        assert kernel.absent() == f"{kernel.package} is not installed"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kernel", of_packages(), ids=lambda one: str(one.name))
def test_packages_are_called_as_their_signatures_have_it(kernel: Any) -> None:
    hopper = torch.device("cuda", 0)
    assert kernel.missing(hopper, torch.float32) == "takes float16 and bfloat16 only"
    assert kernel.missing(hopper, torch.bfloat16) == ""

    class Host(Card):
        pass

    kernel.missing = lambda *_: ""
    tried = compare(kernel, Host(kernel), SHAPE, torch.bfloat16)
    assert tried == Tried(kernel.name, "", tried.deviation)
    assert tried.deviation is not None
    assert tried.deviation < (0.05 if kernel.name == "sage" else 0.01)


@pytest.mark.usefixtures("installed")
def test_a_card_that_is_too_old_or_too_new_and_a_release_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert FlashAttention2().missing(card, torch.float16) == "wants compute capability 8.0, this is 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (10, 0))
    assert FlashAttention3().missing(card, torch.float16) == "is built for Hopper only"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    import flash_attn_interface  # type: ignore[import-not-found]

    monkeypatch.setattr(flash_attn_interface, "flash_attn_func", lambda q, k, v: q)
    told = "flash_attn_interface.flash_attn_func has no argument return_attn_probs: of another release"
    assert FlashAttention3().missing(card, torch.float16) == told


def test_a_pool_that_names_what_is_not_there_cannot_be_loaded(checkpoints: Callable[[str], Path]) -> None:
    class Agent:
        told = list[object]()

        def send(self, frame: object) -> None:
            self.told.append(frame)

    agent: Any = Agent()
    folder = str(checkpoints("wan21-t2v"))
    cpu, mesh = devices.open_device("cpu"), Mesh("cpu", 1)
    assert rank.warm(open_model(Pool(model=folder, attention="sdpa-math"), cpu, mesh), agent)
    assert cpu.kernel.name == "sdpa-math"
    assert not agent.told
    assert not rank.warm(open_model(Pool(model=folder, attention="sage"), cpu, mesh), agent)
    known = "sdpa, sdpa-flash, sdpa-efficient, sdpa-cudnn, sdpa-math"
    assert agent.told == [CannotLoadFrame(message=f"attention: 'sage' is none of this device's kernels: {known}")]


def test_what_a_choice_among_one_tells() -> None:
    assert Choice("sdpa", (Tried("sdpa"),)).told() == "attention sdpa"


def settled(ranks: Ranks, wanted: str, broken: int) -> str:
    """What this rank ends up with; on the rank ``broken`` every kernel is wrong."""
    factor = 2.0 if ranks.rank == broken else 1.0
    card = Card(Slow("a", 1.0, factor), Slow("b", 1.0, factor))
    try:
        return settle(wanted, card, cases.mesh(ranks.world), SHAPE, torch.float32).name + card.kernel.name
    except CannotLoad as error:
        return str(error)


def test_all_ranks_use_what_rank_0_took_or_none_does(gloo: Callable[[int], Gloo]) -> None:
    assert gloo(2).run(settled, "b", 9) == ["bb", "bb"]
    of_rank_0, of_rank_1 = gloo(2).run(settled, "b", 1)
    assert of_rank_0 == "attention: b cannot be used on every rank"
    assert of_rank_1.startswith("attention: b on rank 1 deviates by 1")
    of_rank_0, of_rank_1 = gloo(2).run(settled, "b", 0)
    assert of_rank_0.startswith("attention: b deviates by 1")
    assert of_rank_1 == "attention: rank 0 found no kernel for 'b'"
