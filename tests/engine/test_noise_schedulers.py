"""Our solvers against diffusers' implementations on Wan's own sigmas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from workers.engine import noise_schedulers as noise


def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A smooth nonlinear field that stands in for a model."""
    return torch.sin(2 * x) * (0.5 + sigma) - 0.3 * x


def ours(solver: str, steps: int, shift: float, x: torch.Tensor) -> torch.Tensor:
    plan = noise.schedule(solver, steps, shift)
    history = noise.History()
    for index in range(steps):
        x, history = noise.step(plan, index, x, velocity(x, plan.sigmas[index]), history)
    return x


def theirs(scheduler: Any, x: torch.Tensor) -> torch.Tensor:
    for index, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(x, float(scheduler.sigmas[index])), timestep, x, return_dict=False)[0]
    return x


def start() -> torch.Tensor:
    return torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
def test_unipc(steps: int, shift: float) -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
    plan = noise.schedule("unipc", steps, shift)
    assert list(plan.timesteps) == scheduler.timesteps.tolist()
    np.testing.assert_allclose(plan.sigmas, scheduler.sigmas.numpy(), atol=1e-7)
    # diffusers computes its coefficients in float32; over 40 steps that adds up.
    torch.testing.assert_close(ours("unipc", steps, shift, start()), theirs(scheduler, start()), atol=3e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers under numpy 2
@pytest.mark.parametrize("steps", [1, 2, 8, 20])
def test_dpm(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=5.0,
        euler_at_final=True,
    )
    scheduler.set_timesteps(steps)
    plan = noise.schedule("dpm++", steps, 5.0)
    # float32 has no lambda at sigma 1: a value next to it stands in.
    sigmas = np.array(plan.sigmas, np.float32)
    sigmas[0] = 1 - 1e-7
    scheduler.sigmas = torch.from_numpy(sigmas)
    scheduler.timesteps = torch.tensor(plan.timesteps)
    torch.testing.assert_close(ours("dpm++", steps, 5.0, start()), theirs(scheduler, start()), atol=1e-3, rtol=1e-3)


def test_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[(8 - index) / 8 for index in range(8)])
    torch.testing.assert_close(ours("euler", 8, 5.0, start()), theirs(scheduler, start()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("solver", noise.SOLVERS)
def test_clean_latents_as_output_are_the_same_as_their_velocity(solver: str) -> None:
    by_velocity, by_sample = noise.schedule(solver, 6, 3.0), noise.schedule(solver, 6, 3.0, "sample")
    x, y = start(), start()
    past_x, past_y = noise.History(), noise.History()
    for index, sigma in enumerate(by_velocity.sigmas[:-1]):
        x, past_x = noise.step(by_velocity, index, x, velocity(x, sigma), past_x)
        y, past_y = noise.step(by_sample, index, y, y - sigma * velocity(y, sigma), past_y)
    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_an_unknown_solver_is_refused() -> None:
    plan = noise.schedule("heun", 2, 1.0)
    with pytest.raises(ValueError, match="heun"):
        noise.step(plan, 0, start(), start(), noise.History())


def test_a_history_survives_being_named() -> None:
    history = noise.History((start(), start() + 1), start() + 2, 2)
    again = noise.history_from(noise.history_tensors(history), 2)
    assert [torch.equal(a, b) for a, b in zip(again.predictions, history.predictions, strict=True)] == [True, True]
    assert again.last_sample is not None
    assert torch.equal(again.last_sample, start() + 2)
