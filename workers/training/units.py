"""The painter's units apart from the model: the first blocks' feed-forward parts over kept streams.

Only the painter's units learn; what else those parts do, the norms before them and what their output is multiplied by
are the model's, frozen.
"""

from typing import Final

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from workers.training.model import CARRIER, CONTENT, FIRST, FLOW_DEPTH, SPARE, WIDTH
from workers.training.scenes import SCENE_WIDTH
from workers.training.sketch import NOTES, UNITS, Sketch
from workers.training.streams import LEVELS, Streams

_NOTES_AT: Final = SPARE + SCENE_WIDTH
_WRITTEN: Final = [*range(CONTENT), *range(_NOTES_AT, _NOTES_AT + NOTES)]
_RIDGE: Final = 1e-4
_READ_RIDGE: Final = 1e-6
_GIVEN_SHARE: Final = 3e-3
"""What it counts that a unit says nothing where it is to be closed, against its saying the right thing elsewhere."""
_GATE: Final = 4.0
"""How hard the mask opens and closes. In painted tokens it stands in a ratio to the large constant channel that is
above 2 at every block; in all others below 1.4."""
_LAID_ON: Final = 50_000


class Units(nn.Module):
    """The units' own parameters for each of the first blocks: `entries` [units, width], `biases` [units], `exits`
    [width, units]."""

    def __init__(self, model: WanTransformer3DModel) -> None:
        super().__init__()
        self.entries = nn.ParameterList(torch.zeros(UNITS, WIDTH) for _ in range(FLOW_DEPTH))
        self.biases = nn.ParameterList(torch.zeros(UNITS) for _ in range(FLOW_DEPTH))
        self.exits = nn.ParameterList(torch.zeros(WIDTH, UNITS) for _ in range(FLOW_DEPTH))
        self._others: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._shift: list[Tensor] = []
        self._scale: list[Tensor] = []
        self._gain: list[Tensor] = []
        self.read(model)

    @torch.no_grad()
    def read(self, model: WanTransformer3DModel) -> None:
        """Take over the model's units and all that is around them."""
        embedder = model.condition_embedder
        times = embedder.time_embedder(embedder.timesteps_proj(torch.tensor([1000 * level for level in LEVELS])))
        shifts = embedder.time_proj(embedder.act_fn(times)).view(-1, 6, WIDTH)
        self._others, self._shift, self._scale, self._gain = [], [], [], []
        for number, block in enumerate(model.blocks[:FLOW_DEPTH]):
            first, last = block.ffn.net[0].proj, block.ffn.net[2]
            self.entries[number].copy_(first.weight[-UNITS:])
            self.biases[number].copy_(first.bias[-UNITS:])
            self.exits[number].copy_(last.weight[:, -UNITS:])
            others = (first.weight[:-UNITS], first.bias[:-UNITS], last.weight[:, :-UNITS], last.bias)
            self._others.append(tuple(each.detach().clone() for each in others))
            modulation = block.scale_shift_table + shifts
            self._shift.append(modulation[:, 3])
            self._scale.append(modulation[:, 4])
            self._gain.append(modulation[:, 5])

    @torch.no_grad()
    def write(self, model: WanTransformer3DModel) -> None:
        """Put the units into the model."""
        for number, block in enumerate(model.blocks[:FLOW_DEPTH]):
            first, last = block.ffn.net[0].proj, block.ffn.net[2]
            first.weight[-UNITS:], first.bias[-UNITS:] = self.entries[number], self.biases[number]
            last.weight[:, -UNITS:] = self.exits[number]

    def reads(self, number: int, stream: Tensor, level: Tensor) -> Tensor:
        """What the feed-forward part of block `number` reads of a stream [n, width] at `level` [n]."""
        plain = F.layer_norm(stream, (WIDTH,), eps=1e-6)
        return plain * (1 + self._scale[number][level]) + self._shift[number][level]

    def sums(self, number: int, read: Tensor) -> Tensor:
        """What the units of block `number` sum up to, [n, units], where they read `read` [n, width]."""
        return F.linear(read, self.entries[number], self.biases[number])

    def forward(self, tokens: Streams) -> Tensor:
        """The stream [n, width] after the first blocks."""
        stream = tokens.entering
        for number, added in enumerate((*tokens.added, None)):
            read = self.reads(number, stream, tokens.level)
            enter, bias, leave, offset = self._others[number]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                # One product for all hidden units is faster than two.
                sums = F.linear(read, torch.cat([enter, self.entries[number]]), torch.cat([bias, self.biases[number]]))
                written = F.linear(F.gelu(sums, approximate="tanh"), torch.cat([leave, self.exits[number]], 1), offset)
            stream = stream + self._gain[number][tokens.level] * written.float()
            if added is not None:
                stream = stream + added
        return stream

    @torch.no_grad()
    def lay(self, sketch: Sketch, tokens: Streams, closed: list[Tensor], seed: int) -> None:
        """Make the units do what the sketch does with `tokens` of the first level; `closed` is for each block what is
        read where they are to stay closed, [n, width].

        What a unit of the sketch sums up is linear in what a token is told and in what the layers before it made. Both
        can be read off the block's input, so a unit of the block reads them there. It writes what the sketch's does,
        and from a ridge regression what is still missing then; in the last block towards the whole stream, so that the
        rest of the model finds all as it would be with a photo: the mask too, and no notes.
        """
        some = tokens.rows(torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:_LAID_ON])
        stream = some.entering
        for number, (sums, added) in enumerate(sketch.walk(some.told)):
            read = self.reads(number, stream, some.level)
            entry, bias = _readout(read, closed[number].float(), sums)
            entry[:, FIRST] += _GATE
            entry[:, CARRIER] -= _GATE * (read[:, FIRST] / read[:, CARRIER]).median()
            hidden = F.gelu(read @ entry.T + bias, approximate="tanh")
            enter, offset, leave, end = self._others[number]
            gain = self._gain[number][0]
            by_others = gain * F.linear(F.gelu(F.linear(read, enter, offset), approximate="tanh"), leave, end)
            exits, targets = torch.zeros(WIDTH, UNITS), torch.zeros(len(stream), WIDTH)
            if number < FLOW_DEPTH - 1:
                exits[_WRITTEN], targets[:, _WRITTEN] = sketch.layers[number].end.weight, added
            else:
                exits[:CONTENT], targets = sketch.layers[number].end.weight[:CONTENT], some.wanted - stream - by_others
            exits += _ridge(hidden, targets - hidden @ exits.T).T
            self.entries[number].copy_(entry)
            self.biases[number].copy_(bias)
            self.exits[number].copy_(exits / gain[:, None])
            stream = stream + by_others + hidden @ exits.T
            if number < FLOW_DEPTH - 1:
                stream = stream + some.added[number]


def _ridge(features: Tensor, targets: Tensor) -> Tensor:
    square = features.T @ features
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square, features.T @ targets)


def _readout(read: Tensor, closed: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix [units, width] and bias [units] that make `sums` of what is read, and little of what is `closed`
    out."""
    mean, middle = read.mean(0), sums.mean(0)
    own, other = read - mean, closed - mean
    square = own.T @ own / len(own) + _GIVEN_SHARE * other.T @ other / len(other)
    square += _READ_RIDGE * square.diagonal().mean() * torch.eye(WIDTH)
    found = torch.linalg.solve(square, own.T @ (sums - middle) / len(own))
    return found.T.clone(), middle - mean @ found
