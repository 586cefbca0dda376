"""How a token's picture follows from first-frame tokens that lie between the grid's points: fitted, not trained.

A head that looks at a fractional shift gets a softmax blend of the tokens around it. The picture at that shift is not
the blend, but to a good part a linear function of blends around several nearby points; ridge regression on shifted
pictures finds it, stage by stage, each stage correcting what the one before left.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from workers.training import clips, codec

_REACH: Final = 4
_GRID: Final = 10
_MARGIN: Final = 2


@dataclass(frozen=True)
class Group:
    """Looks at `offset` (rows, columns, in tokens) from where the flow points, carrying the first `channels`."""

    offset: tuple[float, float]
    channels: int


CENTRE: Final = (Group((0.0, 0.0), 128),)
CORNERS: Final = tuple(Group((row, column), 64) for row in (-0.5, 0.5) for column in (-0.5, 0.5))
SIDES: Final = tuple(Group(at, 64) for at in ((-0.6, 0.0), (0.6, 0.0), (0.0, -0.6), (0.0, 0.6)))


def _kernel(shift: torch.Tensor, sharp: float, wide: float, angle: float) -> torch.Tensor:
    """What a head's softmax gives each whole offset -4..4 along one axis for each `shift` [n]: [n, 9]."""
    away = torch.arange(-_REACH, _REACH + 1.0)[None] - shift[:, None]
    return torch.softmax(sharp * torch.cos(away) + wide * torch.cos(angle * away), 1)


def _blend(content: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, channels: int) -> torch.Tensor:
    padded = F.pad(content[:, :channels], (_REACH,) * 4)
    count, _, height, width = padded.shape
    tall = torch.einsum("nck,nchwk->nchw", rows[:, None].expand(-1, channels, -1), padded.unfold(2, 2 * _REACH + 1, 1))
    wide = torch.einsum("nk,nchwk->nchw", columns, tall.unfold(3, 2 * _REACH + 1, 1))
    assert wide.shape == (count, channels, height - 2 * _REACH, width - 2 * _REACH)
    return wide[:, :, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].movedim(1, -1).reshape(-1, channels)


def fit_stages(
    bank: torch.Tensor,
    basis: codec.Basis,
    token_basis: torch.Tensor,
    logits: tuple[float, float],
    angle: float,
    *,
    seed: int,
    rounds: int = 8,
    still_weight: float = 8.0,
    ridge: float = 5.0,
) -> list[torch.Tensor]:
    """For the stages after `CENTRE` (which carries the content over as it is): `CORNERS`, then `SIDES`; for each the
    matrix [sum of channels, 128] from blends to the correction.

    `bank` is uint8 [n, 3, S, S]; `logits` and `angle` are those of the heads' rotary pairs. `still_weight` is how much
    unshifted pictures count: a correction should leave them alone.
    """
    generator = torch.Generator().manual_seed(seed)
    count = min(96, len(bank))
    sources = bank[torch.randperm(len(bank), generator=generator)[:count]].to(torch.float32) / 255
    side = 16 * _GRID
    window = torch.full((count,), 0.7 * clips.SOURCE_PX / side)
    one = torch.ones(count, 1)

    def content(across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        path = clips.CameraPath(across[:, None] * 16, down[:, None] * 16, one, 0 * one, one)
        latents = codec.encode(basis, clips.film(sources, path, side, window, torch.zeros(count, 2)))
        tokens = F.pixel_unshuffle(latents[:, :, 0], 2)
        return torch.einsum("ct,nthw->nchw", token_basis, tokens)

    still = content(torch.zeros(count), torch.zeros(count))
    shifts = [torch.zeros(2, count)] + [torch.rand(2, count, generator=generator) * 2 - 1 for _ in range(rounds - 1)]
    weights = [still_weight] + [1.0] * (rounds - 1)

    def looks(groups: tuple[Group, ...], across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        found = []
        for group in groups:
            rows = _kernel(down + group.offset[0], *logits, angle)
            columns = _kernel(across + group.offset[1], *logits, angle)
            found.append(_blend(still, rows, columns, group.channels))
        return torch.cat(found, 1)

    inner = slice(_MARGIN, -_MARGIN)
    left = [
        content(across, down)[:, :, inner, inner].movedim(1, -1).flatten(0, 2) - looks(CENTRE, across, down)
        for across, down in shifts
    ]
    answers = []
    for groups in (CORNERS, SIDES):
        seen = [looks(groups, across, down) for across, down in shifts]
        square = torch.stack([weight * look.T @ look for weight, look in zip(weights, seen, strict=True)]).sum(0)
        pairs = zip(weights, seen, left, strict=True)
        product = torch.stack([weight * look.T @ rest for weight, look, rest in pairs]).sum(0)
        matrix = torch.linalg.solve(square + ridge * torch.eye(square.shape[0]), product)
        left = [rest - look @ matrix for rest, look in zip(left, seen, strict=True)]
        answers.append(matrix)
    return answers
