"""Attention kernels against the formula, output and log-sum-exp."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.engine import devices
from workers.engine.devices.attention import OF_TORCH, ROUNDING, Attention, SdpaMath

CPU = torch.device("cpu")


def tokens(length: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, length, 4, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)


def formula(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double())
    return out, scores.exp().sum(-1).log().transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kernel", [one for one in OF_TORCH if not one.missing(CPU, torch.float32)], ids=lambda one: str(one.name)
)
def test_output_and_log_sum_exp(kernel: Attention, dtype: torch.dtype) -> None:
    q, k, v = tokens(37, 1, dtype), tokens(50, 2, dtype), tokens(50, 3, dtype)
    out, lse = formula(q, k, v)
    only = kernel(q, k, v)
    assert (only.shape, only.dtype) == (q.shape, dtype)
    assert float((only.double() - out).norm() / out.norm()) < ROUNDING[dtype]
    also, told = kernel.with_lse(q, k, v)
    assert float((also.double() - out).norm() / out.norm()) < ROUNDING[dtype]
    assert (told.shape, told.dtype) == ((2, 37, 4), torch.float32)
    assert float((told - lse).abs().max()) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_the_default_of_a_cpu_is_torchs_flash_kernel_with_the_same_bits() -> None:
    device = devices.open_device("cpu")
    q, k, v = tokens(37, 1), tokens(50, 2), tokens(50, 3)
    assert torch.equal(device.attention(q, k, v), device.attention_with_lse(q, k, v)[0])


def test_a_kernel_without_log_sum_exp_leaves_it_to_one_that_has_it() -> None:
    class Plain(Attention):
        name = "plain"

        def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return SdpaMath()(q, k, v)

    device = devices.open_device("cpu")
    device.kernel = Plain()
    q, k, v = tokens(37, 1), tokens(50, 2), tokens(50, 3)
    with pytest.raises(TypeError, match="plain gives no log-sum-exp"):
        device.kernel.with_lse(q, k, v)
    assert float((device.attention_with_lse(q, k, v)[1] - formula(q, k, v)[1]).abs().max()) < 1e-5


def test_merging_two_halves_by_log_sum_exp_gives_the_whole() -> None:
    device = devices.open_device("cpu")
    q, k, v = tokens(37, 1), tokens(50, 2), tokens(50, 3)
    (first, a), (second, b) = (
        device.attention_with_lse(q, k[:, part], v[:, part]) for part in (slice(20), slice(20, 50))
    )
    share = torch.sigmoid(a - b).unsqueeze(-1)
    assert float((share * first + (1 - share) * second - device.attention(q, k, v)).abs().max()) < 1e-5
