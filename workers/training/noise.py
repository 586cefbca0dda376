"""How noisy the clips are that training shows."""

import torch
from torch import Tensor


def draw_sigmas(size: int, generator: torch.Generator) -> Tensor:
    """Noise levels [size]: logit-normal towards noise, and one in six pure noise, as sampling spends its steps."""
    sigma = torch.sigmoid(1.2 * torch.randn(size, generator=generator) + 1.4)
    return torch.where(torch.rand(size, generator=generator) < 1 / 6, torch.ones(size), sigma)


def add_noise(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """`clean` latents [b, ...] on the straight line to noise, at `sigma` [b] of the way."""
    level = sigma.view(-1, *(1,) * (clean.dim() - 1))
    return (1 - level) * clean + level * torch.randn(clean.shape, generator=generator)
