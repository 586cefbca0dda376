"""What one forward of a Wan transformer costs, in floating point operations: multiplications and additions of matrix
products, convolutions and attention, as ``torch.utils.flop_counter`` counts them. Norms and the like are left out: a
few parts in ten thousand at Wan's widths. Pure: no torch.

With S tokens of width d, F the feed-forward's width, T text and I image tokens, a block takes

    self-attention     8·S·d² (q, k, v, output)  +  4·S²·d (scores and mixing)
    cross-attention    4·S·d² (q, output)  +  4·(T+I)·d² (k, v)  +  4·S·(T+I)·d
    feed-forward       4·S·d·F
"""

from __future__ import annotations

from math import prod

from msgspec import Struct


class Dit(Struct, frozen=True):
    """The sizes of a Wan transformer; ``image_width`` is 0 without CLIP features."""

    layers: int
    heads: int
    head_size: int
    ffn: int
    in_channels: int
    out_channels: int
    text_width: int = 4096
    image_width: int = 0
    time_width: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)

    @property
    def width(self) -> int:
        """Numbers per token."""
        return self.heads * self.head_size


class Work(Struct, frozen=True):
    """One forward.

    Attributes:
        tokens: of the sequence.
        text: tokens of the prompt, its padding included.
        image: tokens of CLIP features.
        times: embeddings of the timestep: 1, or one per token (TI2V).
    """

    tokens: int
    text: int = 512
    image: int = 0
    times: int = 1


def tokens(width: int, height: int, frames: int, spatial: int = 8, temporal: int = 4, patch: int = 2) -> int:
    """Tokens of a video of that many pixels and frames."""
    return ((frames - 1) // temporal + 1) * (height // spatial // patch) * (width // spatial // patch)


def self_attention(dit: Dit, work: Work) -> int:
    """Of one block's self-attention module, its projections included: what the attention cache saves."""
    s, d = work.tokens, dit.width
    return 8 * s * d * d + scores(dit, work)


def scores(dit: Dit, work: Work) -> int:
    """Of one block's self-attention without its projections: what an attention kernel does."""
    return 4 * work.tokens**2 * dit.width


def block(dit: Dit, work: Work) -> int:
    """Of one block."""
    s, d, context = work.tokens, dit.width, work.text + work.image
    cross = 4 * s * d * d + 4 * context * d * d + 4 * s * context * d
    return self_attention(dit, work) + cross + 4 * s * d * dit.ffn


def ends(dit: Dit, work: Work) -> int:
    """Of what is before and after the blocks: patches, embeddings of time, text and image, the output layer."""
    s, d, volume = work.tokens, dit.width, prod(dit.patch)
    patches = 2 * s * d * volume * (dit.in_channels + dit.out_channels)
    time = 2 * work.times * (dit.time_width * d + d * d + 6 * d * d)
    text = 2 * work.text * (dit.text_width * d + d * d)
    image = 2 * work.image * dit.image_width * (dit.image_width + d)
    return patches + time + text + image


def forward(dit: Dit, work: Work) -> int:
    """Of one forward that computes everything."""
    return ends(dit, work) + dit.layers * block(dit, work)


def forward_reusing_attention(dit: Dit, work: Work) -> int:
    """Of one forward that takes every block's self-attention from the cache."""
    return forward(dit, work) - dit.layers * self_attention(dit, work)


def forward_skipped(dit: Dit, work: Work) -> int:
    """Of one forward that the step cache ends after the first block."""
    return ends(dit, work) + block(dit, work)


#: Published sizes: Wan 2.1 and 2.2 A14B text-to-video, and 2.1 image-to-video with CLIP.
WAN_14B = Dit(layers=40, heads=40, head_size=128, ffn=13824, in_channels=16, out_channels=16)
WAN_14B_I2V = Dit(layers=40, heads=40, head_size=128, ffn=13824, in_channels=36, out_channels=16, image_width=1280)
WAN_1_3B = Dit(layers=30, heads=12, head_size=128, ffn=8960, in_channels=16, out_channels=16)
