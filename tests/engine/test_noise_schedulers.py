"""What the solvers' plans and histories are; their formulas are in ``test_solver_formulas``."""

from __future__ import annotations

import pytest
import torch

from workers.engine import noise_schedulers as noise


def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A smooth nonlinear field that stands in for a model."""
    return torch.sin(2 * x) * (0.5 + sigma) - 0.3 * x


def start() -> torch.Tensor:
    return torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


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
