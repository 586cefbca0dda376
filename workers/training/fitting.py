"""What the painter's units start as: features set by hand in terms of what a token can be told, and what they write by
ridge regression.

The first block's units are features of the backdrop's words and the row, and of how far a token is from the thing.
They write the backdrop's content, and into spare channels how the thing covers the token. The next blocks' units are
products of that cover and of how far the thing's colour is from the backdrop's, and random features of them all; they
write what is still missing. Each block is fitted on what the blocks before it make. A bias of their own, also from a
regression, closes all units where the frame is given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from workers.training.model import CONTENT, FLOW_DEPTH, SPARE, WIDTH, first_blocks
from workers.training.scenes import SCENE_WIDTH

UNITS: Final = 512
"""Hidden units of each feed-forward part that belong to the painter; the last ones."""
COVERS: Final = 10
LAST_SIGMA: Final = 10 / 11
"""The noise level of the last of four steps: what is painted there is what is seen."""
_COVER_AT: Final = SPARE + SCENE_WIDTH
_BACKDROP_UNITS: Final = 200
_PRODUCT_UNITS: Final = 120
_CLOSED: Final = 48.0
_RIDGE: Final = 1e-4
_READ_RIDGE: Final = 1e-3
_GIVEN_SHARE: Final = 0.1
_X, _Y, _DX, _DY, _CODE = 0, 1, 2, 3, 4
_BACKDROP = slice(_CODE, _CODE + 10)
_SHAPES = slice(_CODE + 10, _CODE + 18)
_COLOUR = slice(_CODE + 18, _CODE + 21)
_SIZE = _CODE + 21
_TOLD = _CODE + SCENE_WIDTH


@dataclass(frozen=True)
class Show:
    """Scenes of one side with the first frame to be made up.

    The model's `inputs`; of the first frame the content after the first blocks that the scene would have there if it
    were given, and its backdrop alone, [b, tokens, 128]; what a token is told [b, tokens, 4 + `SCENE_WIDTH`]: column,
    row, how far right of and below the thing it is, the scene's code; how the thing covers it [b, tokens, 16 * 16]; the
    backdrop's colour there [b, tokens, 3] in -1..1.
    """

    inputs: dict[str, Tensor]
    wanted: Tensor
    backdrop: Tensor
    told: Tensor
    cover: Tensor
    behind: Tensor


def _ridge(features: Tensor, targets: Tensor, strength: float, weight: Tensor | None = None) -> Tensor:
    weighed = features if weight is None else features * weight[:, None]
    square = weighed.T @ features
    square += strength * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square, weighed.T @ targets)


def _readout(stream: Tensor, given: Tensor, targets: Tensor, channels: list[int]) -> tuple[Tensor, Tensor]:
    """The matrix [targets, width] and offset [targets] that tell `targets` from some channels of the stream, and of
    streams with a photo (`given`) as little as they can: what is in a photo must not open a unit."""
    mean, middle = stream.mean(0), targets.mean(0)
    own, other = (stream - mean)[:, channels], (given - mean)[:, channels]
    square = own.T @ own / len(own) + _GIVEN_SHARE * other.T @ other / len(other)
    square += _READ_RIDGE * square.diagonal().mean() * torch.eye(len(channels))
    found = torch.linalg.solve(square, own.T @ (targets - middle) / len(own))
    whole = torch.zeros(WIDTH, targets.shape[1])
    whole[channels] = found
    return whole.T, middle - mean @ whole


def _gate(painted: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """A direction [width] and offset that are about 0 over the stream of painted tokens and `-_CLOSED` or less over 98
    of 100 given ones."""
    both = torch.cat([painted, given])
    sides = torch.cat([torch.zeros(len(painted)), -torch.ones(len(given))])
    weight = torch.cat([torch.full((len(painted),), 4 / len(painted)), torch.full((len(given),), 1 / len(given))])
    weight /= weight.mean()
    mean, middle = (both * weight[:, None]).sum(0) / weight.sum(), (sides * weight).sum() / weight.sum()
    direction = _ridge(both - mean, (sides - middle)[:, None], _READ_RIDGE, weight)[:, 0]
    offset = -(painted @ direction).mean()
    scale = _CLOSED / (-(given @ direction + offset)).quantile(0.02)
    return direction * scale, offset * scale


def _feed_forward_inputs(
    model: WanTransformer3DModel, number: int, inputs: dict[str, Tensor], tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """What reaches the feed-forward part of block `number`, and the stream after the first blocks, [tokens, width]; of
    each clip the first `tokens`, or all."""
    seen: list[Tensor] = []
    hook = model.blocks[number].ffn.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
    after = first_blocks(model, **inputs)
    hook.remove()
    return seen[0][:, :tokens].flatten(0, 1), after[:, :tokens].flatten(0, 1)


def _output_gate(model: WanTransformer3DModel, number: int) -> Tensor:
    """What block `number` multiplies its feed-forward part's output by at `LAST_SIGMA`, [width]."""
    embedder = model.condition_embedder
    time = embedder.time_embedder(embedder.timesteps_proj(torch.tensor([1000 * LAST_SIGMA])))
    table: Tensor = model.blocks[number].scale_shift_table[0] + embedder.time_proj(embedder.act_fn(time)).view(6, WIDTH)
    return table[5]


def _first_features(draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Of the first block, in terms of what a token is told: weights [units, told] and biases."""
    weight, bias = torch.zeros(UNITS, _TOLD), torch.zeros(UNITS)
    back, rest = slice(_BACKDROP_UNITS), slice(_BACKDROP_UNITS, None)
    weight[back, _Y], weight[back, _X] = 2.5 * draw(_BACKDROP_UNITS), 0.3 * draw(_BACKDROP_UNITS)
    weight[back, _BACKDROP] = 0.7 * draw(_BACKDROP_UNITS, 10)
    bias[back] = 0.8 * draw(_BACKDROP_UNITS)
    count = UNITS - _BACKDROP_UNITS
    across, down = draw(count), draw(count)
    length, slope = torch.hypot(across, down), 5.5 + 2 * draw(count).clamp(-1.7, 1.7)
    weight[rest, _DX], weight[rest, _DY] = slope * across / length, slope * down / length
    weight[rest, _SHAPES], weight[rest, _SIZE] = 1.5 * draw(count, 8), draw(count)
    weight[rest, _CODE] = 0.3 * draw(count)
    bias[rest] = 0.35 * slope * draw(count)
    return weight, bias


def _later_features(draw: Callable[..., Tensor], deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Of the other blocks, in terms of what a token is told and then its covers, the backdrop's colour and how far the
    thing's colour is from that; `deviation` [all of these] is where a thing is."""
    cover, apart = slice(_TOLD, _TOLD + COVERS), slice(_TOLD + COVERS + 3, None)
    weight, bias = torch.zeros(UNITS, _TOLD + COVERS + 6), torch.zeros(UNITS)
    for unit in range(_PRODUCT_UNITS):  # gelu(a + b) + gelu(-a - b) - gelu(a - b) - gelu(b - a) is about 3 a b
        pair, signs = divmod(unit, 4)
        one, other = _TOLD + pair // 3, _TOLD + COVERS + 3 + pair % 3
        sign, turn = (1, 1, -1, -1)[signs], (1, -1, 1, -1)[signs]
        weight[unit, one], weight[unit, other] = 0.6 * sign / deviation[one], 0.6 * sign * turn / deviation[other]
    rest, count = slice(_PRODUCT_UNITS, None), UNITS - _PRODUCT_UNITS
    weight[rest, cover] = 0.5 * draw(count, COVERS) / deviation[cover]
    weight[rest, apart] = 0.6 * draw(count, 3) / deviation[apart]
    weight[rest, _SHAPES], weight[rest, _COLOUR] = 0.6 * draw(count, 8), 0.4 * draw(count, 3)
    weight[rest, _DX : _DY + 1], weight[rest, _Y] = 1.5 * draw(count, 2), 0.8 * draw(count)
    weight[rest, _CODE + 1 : _CODE + 10] = 0.25 * draw(count, 9)
    bias[rest] = 0.7 * draw(count)
    return weight, bias


@torch.no_grad()
def fit(model: WanTransformer3DModel, shows: list[Show], given: list[dict[str, Tensor]], seed: int) -> list[float]:
    """Set the painter's units of the first blocks of `model`; `given` are inputs with a photo. Returns what is left of
    the content's error after each block, as a share of the first."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(show, name).flatten(0, 1) for show in shows])

    wanted, backdrop, told, cover, behind = (whole(n) for n in ("wanted", "backdrop", "told", "cover", "behind"))
    thing = cover.mean(1)
    on_thing = thing > 0.01
    weight = 1 + 3 * thing.sqrt()
    components = torch.linalg.svd(cover[on_thing], full_matrices=False)[2][:COVERS]
    covers = cover @ components.T
    covers /= covers[on_thing].std(0)
    apart = (told[:, _COLOUR] - behind) * told[:, _SHAPES].sum(1, keepdim=True)
    channels = [*range(CONTENT), *range(SPARE, _COVER_AT)]
    left: list[float] = []
    for number in range(FLOW_DEPTH):
        passes = [_feed_forward_inputs(model, number, show.inputs, show.wanted.shape[1]) for show in shows]
        stream, after = (torch.cat(parts) for parts in zip(*passes, strict=True))
        left.append(float((wanted - after[:, :CONTENT]).square().mean()))
        if number == 0:
            facts, (weights, biases) = told, _first_features(draw)
            targets = torch.cat([backdrop - after[:, :CONTENT], covers], 1)
        else:
            facts = torch.cat([told, covers, behind, apart], 1)
            weights, biases = _later_features(draw, facts[on_thing].std(0).clamp_min(0.05))
            targets = wanted - after[:, :CONTENT]
            channels = [*range(CONTENT), *range(SPARE, _COVER_AT + COVERS)]
        closed = torch.cat([_feed_forward_inputs(model, number, inputs)[0] for inputs in given])
        matrix, offset = _readout(stream, closed, facts, channels)
        gate, gate_offset = _gate(stream, closed)
        entry, bias = weights @ matrix + gate, weights @ offset + biases + gate_offset
        hidden = F.gelu(stream @ entry.T + bias, approximate="tanh")
        written = _ridge(hidden, targets, _RIDGE, weight).T
        first, last = model.blocks[number].ffn.net[0].proj, model.blocks[number].ffn.net[2]
        output = torch.zeros(WIDTH, UNITS)
        output[:CONTENT] = written[:CONTENT]
        output[_COVER_AT : _COVER_AT + len(written) - CONTENT] = written[CONTENT:]
        first.weight[-UNITS:], first.bias[-UNITS:] = entry, bias
        last.weight[:, -UNITS:] = output / _output_gate(model, number)[:, None]
    last_pass = [_feed_forward_inputs(model, 0, show.inputs, show.wanted.shape[1])[1] for show in shows]
    end = torch.cat(last_pass)
    left.append(float((wanted - end[:, :CONTENT]).square().mean()))
    assert math.isfinite(left[-1])
    return [each / left[0] for each in left[1:]]
