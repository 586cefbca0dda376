"""The painter by itself: what the first blocks' feed-forward parts are to do, taught token by token without the blocks.

What a token of a scene shows depends on where the token is and on what is said, and on nothing else. So three residual
layers, which is what the painter's units are, learn it from single tokens, at a hundredth of what these cost inside the
transformer.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.training import scenes
from workers.training.model import CONTENT, FLOW_DEPTH
from workers.training.scenes import NOTHING, Scene

UNITS: Final = 512
"""Hidden units of each layer."""
NOTES: Final = 24
"""Channels beside the content in which a layer may leave something for the next."""
_RATE: Final = 2e-3
_EDGE: Final = 4.0
"""How much oftener a token is drawn that a thing covers in part."""
_UNSURE: Final = (0.01,) * 5 + (0.03,) * scenes.SCENE_WIDTH
"""How far off is what a token can read of its place and of the words."""


class Layer(nn.Module):
    """`UNITS` units over `inputs` numbers; what they write is added to content and notes."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.sums, self.end = nn.Linear(inputs, UNITS), nn.Linear(UNITS, CONTENT + NOTES)
        with torch.no_grad():
            self.end.weight.mul_(0.3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the units sum up to [n, units], and what is added to content and notes [n, channels]."""
        sums: Tensor = self.sums(inputs)
        return sums, self.end(F.gelu(sums, approximate="tanh"))


class Sketch(nn.Module):
    """From what a token is told [n, `scenes.TOLD`] to its content, in as many layers as the painter has blocks."""

    def __init__(self) -> None:
        super().__init__()
        later = scenes.TOLD + CONTENT + NOTES
        self.layers = [Layer(later if number else scenes.TOLD) for number in range(FLOW_DEPTH)]
        self._registered = nn.ModuleList(self.layers)
        with torch.no_grad():
            self.layers[0].sums.weight.mul_(3)  # pictures have edges

    def walk(self, told: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What each layer returns."""
        found: list[tuple[Tensor, Tensor]] = []
        state: Tensor | None = None
        for layer in self.layers:
            sums, added = layer(told if state is None else torch.cat([told, state], -1))
            state = added if state is None else state + added
            found.append((sums, added))
        return found

    def forward(self, told: Tensor) -> Tensor:
        """The content [n, `CONTENT`]."""
        return torch.stack([added for _, added in self.walk(told)]).sum(0)[..., :CONTENT]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a sketch is taught: the tokens of `pool` scenes of each of `sides` px, at most `tokens` of them in each of
    `steps` steps.

    `draw` draws a scene, or None where none is named; `content` says what pictures [b, 3, S, S] in [0, 1] are as
    content [b, tokens, `CONTENT`], `cost` what an error of it [n, `CONTENT`] comes to [n].
    """

    draw: Callable[[random.Random], Scene | None]
    content: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor], Tensor]
    sides: tuple[int, ...]
    steps: int
    pool: int = 1500
    tokens: int = 4096


def _tokens(lesson: Lesson, side: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """What the tokens of the pool's scenes are told, their content, and how often each is to be drawn."""
    told, wanted, often = [], [], []
    for start in range(0, lesson.pool, 64):
        some = [lesson.draw(rng) for _ in range(min(64, lesson.pool - start))]
        told += [scenes.told(scene, side // 16) for scene in some]
        seen = [scene or NOTHING for scene in some]
        wanted.append(lesson.content(torch.stack([scenes.render(scene, side) for scene in seen])).flatten(0, 1))
        covered = F.avg_pool2d(torch.stack([scenes.cover(scene, side) for scene in seen])[:, None], 16).flatten()
        often.append(torch.where((covered > 0.01) & (covered < 0.99), _EDGE, 1.0))
    return torch.cat(told), torch.cat(wanted), torch.cat(often)


def teach(lesson: Lesson, seed: int) -> tuple[Sketch, float]:
    """A sketch that has had the lesson, and the mean cost of its errors over the last steps."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    parts = [_tokens(lesson, side, rng) for side in lesson.sides]
    told, wanted, often = (torch.cat(each) for each in zip(*parts, strict=True))
    bounds, unsure = often.double().cumsum(0), torch.tensor(_UNSURE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sketch = Sketch()
    optimizer = torch.optim.Adam(sketch.parameters(), _RATE, betas=(0.9, 0.98))
    left = 0.0
    for step in range(lesson.steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 100) * (0.505 + 0.495 * math.cos(math.pi * step / lesson.steps))
        chosen = draw_rows(bounds, min(lesson.tokens, len(told)), generator)
        inputs = told[chosen] + unsure * torch.randn(len(chosen), scenes.TOLD, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = sketch(inputs)
        loss = lesson.cost(made.float() - wanted[chosen]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        left = loss.item() if step == 0 else 0.98 * left + 0.02 * loss.item()
    return sketch.requires_grad_(False), left


def draw_rows(bounds: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The numbers [count] of rows, each drawn as often as it is due; `bounds` [rows] are the sums of that so far."""
    drawn = torch.searchsorted(bounds, bounds[-1] * torch.rand(count, generator=generator, dtype=torch.double))
    return drawn.clamp_max_(len(bounds) - 1)
