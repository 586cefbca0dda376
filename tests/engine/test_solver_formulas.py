"""Our solvers at 1e-6: against a restatement in float64 of the formulas that Wan's ``FlowUniPCMultistepScheduler`` and
``FlowDPMSolverMultistepScheduler`` compute, and against diffusers' own classes made to compute in float64.

The restatement follows the papers and shares nothing with ours: the corrector's and the predictor's weights come from
solving the order conditions as a linear system (UniPC, arXiv:2302.04867, algorithms 5 to 8), and DPM-Solver++(2M) is
written by its extrapolated prediction (arXiv:2211.01095, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from msgspec.structs import replace

from workers.engine import noise_schedulers as noise

Array = npt.NDArray[np.float64]
TOLERANCE = 1e-6
SHAPE = (1, 4, 2, 4, 4)


def field(x: Any, sigma: float, sin: Any) -> Any:
    """A smooth nonlinear velocity that stands in for a model."""
    return sin(2 * x) * (0.5 + sigma) - 0.3 * x


def start() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wan_unipc_sigmas(steps: int, shift: float) -> Array:
    """``FlowUniPCMultistepScheduler(shift=1).set_timesteps(steps, shift=shift)``."""
    alphas = np.linspace(1, 1 / 1000, 1000)[::-1]
    even = np.linspace((1 - alphas)[0], (1 - alphas)[-1], steps + 1)[:-1]
    return np.append(shift * even / (1 + (shift - 1) * even), 0.0)


def wan_dpm_sigmas(steps: int, shift: float) -> Array:
    """``get_sampling_sigmas``."""
    even = np.linspace(1, 0, steps + 1)[:steps]
    return np.append(shift * even / (1 + (shift - 1) * even), 0.0)


def lam(sigma: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(1 - sigma) - np.log(sigma))


def weights(ratios: list[float], h: float) -> Array:
    """ρ of B(h) = e^h - 1 for data prediction: R ρ = b, with R[k, m] = r_m^k and b[k] = (k+1)! φ_{k+2}(-h) / B(-h)."""
    phi, factorial, rows, b = np.expm1(-h) / -h - 1, 1.0, [], []
    for k in range(1, len(ratios) + 1):
        rows.append(np.power(ratios, k - 1))
        b.append(phi * factorial / np.expm1(-h))
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.array(rows), np.array(b))


def unipc(steps: int, shift: float) -> Array:
    """UniPC-2 with B(h) = e^h - 1, predicting clean data, corrected at every step but the first."""
    sigmas, x = wan_unipc_sigmas(steps, shift), start().numpy()
    clean: list[Array] = []
    before, last_order = x, 0
    for i in range(steps):
        here = x - sigmas[i] * field(x, sigmas[i], np.sin)
        if i > 0:
            h = lam(sigmas[i]) - lam(sigmas[i - 1])
            older = [(lam(sigmas[i - 1 - k]) - lam(sigmas[i - 1])) / h for k in range(1, last_order)]
            rho = weights([*older, 1.0], h) if last_order > 1 else np.array([0.5])
            turn = sum(
                rho[k - 1] * (clean[i - 1 - k] - clean[i - 1]) / older[k - 1] for k in range(1, last_order)
            ) + rho[-1] * (here - clean[i - 1])
            base = sigmas[i] / sigmas[i - 1] * before - (1 - sigmas[i]) * np.expm1(-h) * clean[i - 1]
            x = base - (1 - sigmas[i]) * np.expm1(-h) * turn
        # What the corrected latents' own prediction would be is not computed again: the model ran once.
        clean.append(here)
        last_order = min(2, i + 1, steps - i)
        before = x
        with np.errstate(divide="ignore"):
            h = lam(sigmas[i + 1]) - lam(sigmas[i])
        x = sigmas[i + 1] / sigmas[i] * before - (1 - sigmas[i + 1]) * np.expm1(-h) * clean[i]
        if last_order == 2:
            ratio = (lam(sigmas[i - 1]) - lam(sigmas[i])) / h
            x = x - (1 - sigmas[i + 1]) * np.expm1(-h) * 0.5 * (clean[i - 1] - clean[i]) / ratio
    return x


def dpm(steps: int, shift: float) -> Array:
    """DPM-Solver++(2M), the last step of first order: the final sigma is 0."""
    sigmas, x = wan_dpm_sigmas(steps, shift), start().numpy()
    clean: list[Array] = []
    for i in range(steps):
        clean.append(x - sigmas[i] * field(x, sigmas[i], np.sin))
        h = lam(sigmas[i + 1]) - lam(sigmas[i])
        estimate = clean[i]
        if 0 < i < steps - 1:
            r = (lam(sigmas[i]) - lam(sigmas[i - 1])) / h
            estimate = (1 + 1 / (2 * r)) * clean[i] - 1 / (2 * r) * clean[i - 1]
        x = sigmas[i + 1] / sigmas[i] * x - (1 - sigmas[i + 1]) * np.expm1(-h) * estimate
    return x


def ours(solver: str, steps: int, shift: float, sigmas: tuple[float, ...] | None = None, first: int = 0) -> Array:
    plan = noise.schedule(solver, steps, shift)
    plan = plan if sigmas is None else replace(plan, sigmas=sigmas)
    x, history = start(), noise.History()
    for index in range(first, steps):
        x, history = noise.step(plan, index, x, field(x, plan.sigmas[index], torch.sin), history)
    return x.numpy()


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 16.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20, 50])
def test_unipc_is_wans(steps: int, shift: float) -> None:
    plan = noise.schedule("unipc", steps, shift)
    np.testing.assert_allclose(plan.sigmas, wan_unipc_sigmas(steps, shift), atol=1e-12)
    np.testing.assert_allclose(ours("unipc", steps, shift), unipc(steps, shift), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 16.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20, 50])
def test_dpm_is_wans(steps: int, shift: float) -> None:
    plan = noise.schedule("dpm++", steps, shift)
    np.testing.assert_allclose(plan.sigmas, wan_dpm_sigmas(steps, shift), atol=1e-12)
    np.testing.assert_allclose(ours("dpm++", steps, shift), dpm(steps, shift), atol=TOLERANCE, rtol=0)


@pytest.fixture
def in_float64() -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(usual)


def theirs(scheduler: Any, sigmas: tuple[float, ...], first: int = 0) -> Array:
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    x = start()
    for index, timestep in enumerate(scheduler.timesteps[first:], first):
        x = scheduler.step(field(x, sigmas[index], torch.sin), timestep, x, return_dict=False)[0]
    return x.numpy()


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 40])
def test_unipc_is_diffusers(steps: int, shift: float) -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
    plan = noise.schedule("unipc", steps, shift)
    assert list(plan.timesteps) == scheduler.timesteps.tolist()
    np.testing.assert_allclose(ours("unipc", steps, shift), theirs(scheduler, plan.sigmas), atol=TOLERANCE, rtol=0)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers under numpy 2
@pytest.mark.parametrize("steps", [1, 2, 8, 20])
def test_dpm_is_diffusers(steps: int) -> None:
    """Its step turns the latents into float32 whatever they are, hence the tolerance."""
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    plan = noise.schedule("dpm++", steps, 5.0)
    scheduler.timesteps = torch.tensor(plan.timesteps)
    np.testing.assert_allclose(ours("dpm++", steps, 5.0), theirs(scheduler, plan.sigmas), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_is_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[(8 - index) / 8 for index in range(8)])
    plan = noise.schedule("euler", 8, shift)
    np.testing.assert_allclose(plan.sigmas, scheduler.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours("euler", 8, shift), theirs(scheduler, plan.sigmas), atol=TOLERANCE, rtol=1e-6)


@pytest.mark.usefixtures("in_float64")
def test_a_run_that_starts_in_the_middle_is_diffusers_too() -> None:
    """Video-to-video: the first step that is done has no history, and the last is still of first order."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, 9)[:-1])
    plan = noise.schedule("unipc", 8, 5.0)
    for first in (1, 4, 6, 7):
        fresh = UniPCMultistepScheduler.from_config(scheduler.config)
        fresh.set_timesteps(sigmas=np.linspace(0.999, 0, 9)[:-1])
        fresh.set_begin_index(first)
        np.testing.assert_allclose(
            ours("unipc", 8, 5.0, first=first), theirs(fresh, plan.sigmas, first), atol=TOLERANCE, rtol=0
        )
