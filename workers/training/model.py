"""The small Wan transformer and how its weights start.

It starts as what can be said by hand and learns the rest. By hand: the first block's attention reads a token's column
and row off the border channels and its frame off the mask; the first cross-attention lays the caption's camera code
beside them. The first three blocks are then taught (an auxiliary loss on a few of the stream's channels) to say from
these where in the first frame each token's picture comes from. The attention heads of the later blocks start with that
answer as the rotary phase of their queries, so they look at the first frame there and fetch what they find; the output
starts as what was fetched.

The output is the clean latent (`prediction_type` "sample"), see docs/demo-model.md for why.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import nn

from workers.training.captions import CODE_WIDTH
from workers.training.codec import COMPONENTS, LATENT_CHANNELS
from workers.training.interpolation import Group
from workers.training.text import TEXT_WIDTH

HEADS: Final = 8
HEAD_DIM: Final = 32
WIDTH: Final = HEADS * HEAD_DIM
LAYERS: Final = 6
HIDDEN: Final = 4 * WIDTH
"""Of the feed-forward parts; the last `painter.UNITS` of them paint."""
_CELLS: Final = 4  # latent positions in one token (2x2)

# Where things live in a token's 256 channels at the start.
CONTENT: Final = 128
_NOISE: Final = 48
CARRIER: Final = 176  # and 177: two large opposite constants that keep the layer norms' scale nearly fixed
FIRST: Final = 178
_BORDER: Final = 179  # left, right, top, bottom
PLACE: Final = 183  # column, row, frame
_CODE: Final = 186
_FLOW: Final = 194  # where to look: cos, sin and third of the shift in columns, the same in rows, gain
FLOW_WIDTH: Final = 7
SPARE: Final = _FLOW + FLOW_WIDTH
FLOW_DEPTH: Final = 3  # blocks that find it out
_FLOW_SCALE: Final = 2.0
LOOK_LOGITS: Final = (10.0, 24.0, 12.0)
LOOK_ANGLE: Final = 10000.0 ** (-1 / 5)
_MARK: Final = 4.0

# Rotary pairs per axis of a 32 wide head: 6 for time, 5 for rows, 5 for columns.
_AXIS: Final = {"t": 0, "y": 12, "x": 22}
_PAIRS: Final = {"t": 6, "y": 5, "x": 5}
_CONST: Final = 10  # the slowest time pair: as good as unrotated


def build_transformer() -> WanTransformer3DModel:
    """The architecture alone: 97 input channels (48 noisy, 1 mask, 48 condition), 48 output channels."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=2 * LATENT_CHANNELS + 1,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=HIDDEN,
        num_layers=LAYERS,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=128,
    )


def _pair(axis: str, index: int, head: int) -> int:
    return head * HEAD_DIM + _AXIS[axis] + 2 * index


def _angle(axis: str, index: int) -> float:
    return float(10000.0 ** (-index / _PAIRS[axis]))


def _look(
    attention: WanAttention,
    head: int,
    logits: tuple[float, float, float],
    step: tuple[float, float],
    *,
    led: bool,
) -> None:
    """Start `head` as a look at the first frame's token at `step` (rows, columns) from the asking one, or, if `led`,
    from where the flow channels say that the asking token's picture comes from.

    `logits` is what one token off, several tokens off and another frame cost.
    """
    root = HEAD_DIM**0.25
    for axis, offset in zip("yx", step, strict=True):
        flow = _FLOW + (0 if axis == "x" else 3)
        for index, logit in ((0, logits[0]), (1, logits[1])):
            angle = _angle(axis, index)
            size, cos, sin = math.sqrt(logit) * root, math.cos(offset * angle), math.sin(offset * angle)
            at = _pair(axis, index, head)
            attention.to_k.bias[at] += size
            query, bias = attention.to_q.weight, attention.to_q.bias
            if led and index == 0:
                for row, weights in ((at, (cos, -sin)), (at + 1, (sin, cos))):
                    query[row, flow : flow + 2] += size / _FLOW_SCALE * torch.tensor(weights)
            else:
                bias[at] += size * cos
                bias[at + 1] += size * sin
            if led and index == 1:
                query[at, flow + 2] -= 3 * angle * size * sin / _FLOW_SCALE
                query[at + 1, flow + 2] += 3 * angle * size * cos / _FLOW_SCALE
    at, size = head * HEAD_DIM + _CONST, math.sqrt(logits[2]) * root
    attention.to_q.bias[at] += size
    attention.to_k.weight[at, FIRST] += size / _MARK


def _locate(attention: WanAttention, head: int, axis: str, index: int, slope: float, sides: tuple[int, int]) -> None:
    """Start `head` as a weighing of the first frame's two opposite borders against each other along one axis.

    The answer falls from +1 to -1 as the asking token moves along the axis: its coordinate.
    """
    root = HEAD_DIM**0.25
    near, far = _BORDER + sides[0], _BORDER + sides[1]
    at, const = _pair(axis, index, head), head * HEAD_DIM + _CONST
    size, hold = math.sqrt(slope) * root, math.sqrt(8.0) * root
    attention.to_q.bias[at] = size
    attention.to_k.weight[at + 1, near] = -size / _MARK
    attention.to_k.weight[at + 1, far] = size / _MARK
    attention.to_q.bias[const] = hold
    for mark in (FIRST, near, far):
        attention.to_k.weight[const, mark] = hold / _MARK
    attention.to_v.weight[head * HEAD_DIM, near] = 1 / _MARK
    attention.to_v.weight[head * HEAD_DIM, far] = -1 / _MARK
    attention.to_out[0].weight[PLACE + "xyt".index(axis), head * HEAD_DIM] = 4.0


def _clear(attention: WanAttention, keep: float, out: float) -> None:
    """Scale the random start of the four projections: `keep` for query, key and value, `out` for the last one."""
    for linear, factor in (
        (attention.to_q, keep),
        (attention.to_k, keep),
        (attention.to_v, 1.0 if out else 0.0),
        (attention.to_out[0], out),
    ):
        linear.weight.mul_(factor)
        linear.bias.zero_()


@torch.no_grad()
def prime(model: WanTransformer3DModel, token_basis: torch.Tensor) -> None:
    """Give `model` its start. `token_basis` [128, 48*4] holds orthonormal directions of a token's latents (channel,
    row, column), the most telling first."""
    embedding = model.patch_embedding
    embedding.weight.mul_(0.1)
    embedding.bias.zero_()
    noisy = embedding.weight[:, :LATENT_CHANNELS].flatten(1)
    mask = embedding.weight[:, LATENT_CHANNELS].flatten(1)
    condition = embedding.weight[:, LATENT_CHANNELS + 1 :].flatten(1)
    for part in (noisy, mask, condition):
        part[: _FLOW + FLOW_WIDTH] = 0
    condition[:CONTENT] = 0.5 * token_basis
    noisy[CONTENT : CONTENT + _NOISE] = 0.5 * token_basis[:_NOISE]
    embedding.bias[CARRIER], embedding.bias[CARRIER + 1] = 8.0, -8.0
    mask[FIRST] = _MARK / _CELLS
    for border in range(4):
        condition[_BORDER + border].view(LATENT_CHANNELS, _CELLS)[COMPONENTS + border] = _MARK / 2
    embedding.weight.copy_(torch.cat([noisy, mask, condition], 1).view(WIDTH, 2 * LATENT_CHANNELS + 1, 1, 2, 2))

    time = model.condition_embedder
    time.time_embedder.linear_2.weight.mul_(0.3)
    time.time_embedder.linear_2.bias.zero_()
    _prime_text(time.text_embedder)
    model.scale_shift_table.zero_()
    for number, block in enumerate(model.blocks):
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, 2] = 1
        block.scale_shift_table[:, 5] = 1
        block.ffn.net[2].weight.mul_(0.3)
        block.ffn.net[2].bias.zero_()
        _clear(block.attn1, 0.3, 0.3)
        _clear(block.attn2, 1.0, 0.2)
        for linear in (block.ffn.net[2], block.attn1.to_out[0], block.attn2.to_out[0]):
            linear.weight[: _FLOW + FLOW_WIDTH] = 0
        if number == 0:
            _prime_first_block(block.attn1, block.attn2)
            continue
        for head in range(HEADS):
            if number < FLOW_DEPTH:
                _look(block.attn1, head, (3.0, 8.0, 8.0), (0.0, 0.0), led=False)
            elif number == FLOW_DEPTH and head < CONTENT // HEAD_DIM:
                _fetch(block.attn1, head)
            else:
                around = ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5))[head % 4]
                _look(block.attn1, head, (8.0, 16.0, 10.0), around, led=True)
    out = model.proj_out
    out.weight.mul_(0.02)
    out.bias.zero_()
    to_pixels = out.weight.view(_CELLS, LATENT_CHANNELS, WIDTH)
    to_pixels[..., :CONTENT] = token_basis.T.reshape(LATENT_CHANNELS, _CELLS, CONTENT).transpose(0, 1) / 0.5
    for border, cells in enumerate(((0, 2), (1, 3), (0, 1), (2, 3))):
        for cell in cells:
            to_pixels[cell, COMPONENTS + border] = 0
            to_pixels[cell, COMPONENTS + border, _BORDER + border] = 1 / _MARK


def _fetch(attention: WanAttention, head: int) -> None:
    """Start `head` as the carrier of 32 content channels from where the flow points to here.

    The first frame's own tokens look elsewhere: they already hold what the others fetch.
    """
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        linear.weight[rows] = 0
    attention.to_out[0].weight[:, rows] = 0
    _look(attention, head, LOOK_LOGITS, (0.0, 0.0), led=True)
    const = head * HEAD_DIM + _CONST
    attention.to_q.weight[const, FIRST] = -2 * attention.to_q.bias[const] / _MARK
    for index in range(HEAD_DIM):
        attention.to_v.weight[head * HEAD_DIM + index, head * HEAD_DIM + index] = 1
        attention.to_out[0].weight[head * HEAD_DIM + index, head * HEAD_DIM + index] = 1


@torch.no_grad()
def correct(attention: WanAttention, groups: tuple[Group, ...], matrix: torch.Tensor) -> None:
    """Start all heads of `attention` as one stage of `interpolation`: its looks and the matrix [256, 128] from what
    they carry to the content."""
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        linear.weight.zero_()
        linear.bias.zero_()
    attention.to_out[0].weight[:CONTENT] = matrix.T
    head = 0
    for group in groups:
        for first in range(0, group.channels, HEAD_DIM):
            _look(attention, head, LOOK_LOGITS, group.offset, led=True)
            for index in range(HEAD_DIM):
                attention.to_v.weight[head * HEAD_DIM + index, first + index] = 1
            head += 1
    assert head == HEADS


def flow_error(stream: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The auxiliary loss of each clip, [b]: how far the flow channels of `stream` [b, tokens, width] (after
    `FLOW_DEPTH` blocks) are from `flow` [b, tokens, 7]."""
    said = stream[..., _FLOW : _FLOW + FLOW_WIDTH].float() / _FLOW_SCALE
    return (said - flow).square().mean((1, 2))


def keep_flow_gradients(model: WanTransformer3DModel) -> None:
    """Drop all gradients but those with which the first blocks learn to write their flow and spare channels."""
    for name, parameter in model.named_parameters():
        if not name.startswith("blocks."):
            parameter.grad = None
    for block in model.blocks[:FLOW_DEPTH]:
        for linear in (block.ffn.net[2], block.attn1.to_out[0], block.attn2.to_out[0]):
            for parameter in (linear.weight, linear.bias):
                if parameter.grad is not None:
                    parameter.grad[:_FLOW] = 0


def drop_first_gradients(model: WanTransformer3DModel) -> None:
    """Drop all gradients but those of the blocks after the first and of what comes after them."""
    kept = tuple(f"blocks.{number}." for number in range(FLOW_DEPTH, LAYERS))
    for name, parameter in model.named_parameters():
        if not name.startswith((*kept, "proj_out.")) and name != "scale_shift_table":
            parameter.grad = None


class _Enough(Exception):
    """The first blocks have run and the rest of the forward pass is not wanted."""


def first_blocks(model: WanTransformer3DModel, **inputs: torch.Tensor) -> torch.Tensor:
    """The stream [b, tokens, width] after the first `FLOW_DEPTH` blocks; the others do not run."""
    seen: list[torch.Tensor] = []

    def stop(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0])
        raise _Enough

    hook = model.blocks[FLOW_DEPTH].register_forward_pre_hook(stop)
    try:
        model(**inputs)
    except _Enough:
        pass
    finally:
        hook.remove()
    return seen[0]


def _prime_text(embedder: PixArtAlphaTextProjection) -> None:
    first, second = embedder.linear_1, embedder.linear_2
    first.weight[: 2 * CODE_WIDTH] = 0
    for index in range(CODE_WIDTH):
        first.weight[index, index], first.weight[CODE_WIDTH + index, index] = 1, -1
    first.bias.zero_()
    second.bias.zero_()
    second.weight[:CODE_WIDTH] = 0
    for index in range(CODE_WIDTH):  # gelu(x) - gelu(-x) = x
        second.weight[index, index], second.weight[index, CODE_WIDTH + index] = 1, -1


def _prime_first_block(own: WanAttention, text: WanAttention) -> None:
    _clear(own, 0.0, 0.0)
    _locate(own, 0, "x", 2, 6.4, (0, 1))
    _locate(own, 1, "y", 2, 6.4, (2, 3))
    _locate(own, 2, "t", 2, 2.2, (0, 1))
    for head in range(3, HEADS):
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        torch.nn.init.normal_(own.to_v.weight[rows], std=0.03)
        torch.nn.init.normal_(own.to_out[0].weight[_CODE + CODE_WIDTH :, rows], std=0.02)
        _look(own, head, (3.0, 8.0, 8.0), (0.0, 0.0), led=False)

    _clear(text, 0.0, 0.2)
    for head in range(HEADS):
        text.to_q.bias[head * HEAD_DIM] = 1
        text.to_k.weight[head * HEAD_DIM, 0] = 1
    text.norm_q.weight.fill_(1.45)
    text.norm_k.weight.fill_(1.45)
    text.to_v.weight[:HEAD_DIM] = 0
    text.to_out[0].weight[:, :HEAD_DIM] = 0
    text.to_out[0].weight[PLACE:_FLOW] = 0
    for index in range(CODE_WIDTH):
        text.to_v.weight[index, index] = 1
        text.to_out[0].weight[_CODE + index, index] = 3


@torch.no_grad()
def calibrate(model: WanTransformer3DModel, numbers: range, **inputs: torch.Tensor) -> None:
    """Measure, on one batch, what the norms divide by, and fold it into the weights that were set by hand in the blocks
    `numbers` (and in the output, when the last block is among them). Once for each block.

    Layer norms: every hand-set reader of the stream expects unnormalised channels. Query and key norms: their gains
    restore the lengths that `prime` chose.
    """

    def rms(tensor: torch.Tensor) -> float:
        return float(tensor.float().square().mean().sqrt())

    def spread(tensor: torch.Tensor) -> float:
        return float(tensor.float().std(-1).mean())

    for number in numbers:
        block = model.blocks[number]
        seen: dict[str, float] = {}
        hooks = [
            block.norm1.register_forward_pre_hook(lambda _, a, s=seen: s.__setitem__("norm1", spread(a[0]))),
        ]
        model(**inputs)
        for hook in hooks:
            hook.remove()
        for linear in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
            linear.weight[:, : _FLOW + FLOW_WIDTH].mul_(seen["norm1"])
        hooks = [
            block.attn1.norm_q.register_forward_pre_hook(lambda _, a, s=seen: s.__setitem__("q", rms(a[0]))),
            block.attn1.norm_k.register_forward_pre_hook(lambda _, a, s=seen: s.__setitem__("k", rms(a[0]))),
        ]
        model(**inputs)
        for hook in hooks:
            hook.remove()
        block.attn1.norm_q.weight.fill_(seen["q"])
        block.attn1.norm_k.weight.fill_(seen["k"])
    if LAYERS - 1 not in numbers:
        return
    last: list[float] = []
    hook = model.norm_out.register_forward_pre_hook(lambda _, a: last.append(spread(a[0])))
    model(**inputs)
    hook.remove()
    model.proj_out.weight.mul_(last[0])


def token_basis(latents: torch.Tensor) -> torch.Tensor:
    """The 128 most telling directions of 2x2 latent tokens, [128, 48*4] over (channel, row, column); the border
    channels are left out. `latents` is [b, 48, t, h, w]."""
    picture = latents[:, :COMPONENTS].transpose(1, 2).flatten(0, 1)
    tokens = F.pixel_unshuffle(picture, 2).movedim(1, -1).reshape(-1, COMPONENTS * _CELLS).to(torch.float64)
    _, vectors = torch.linalg.eigh(tokens.T @ tokens / len(tokens))
    basis = torch.zeros(CONTENT, LATENT_CHANNELS * _CELLS)
    basis[:, : COMPONENTS * _CELLS] = vectors.flip(1).T[:CONTENT].to(torch.float32)
    return basis
