"""Device memory that a model takes on each rank, from the sizes of its parts. Pure: no torch.

Weights: parameters times bytes each; a sharded part's are shared out over all ranks. A job adds the most that one of
its stages takes, because they come one after the other:

    denoise   per token of the rank's part of the sequence, with d numbers per token, F in the feed-forward, i bytes
              each: the greater of (2·F + 4·d)·i, in the feed-forward, and d·i + 20·d, in a norm in float32;
              8·(head size), for each token of the whole sequence: its rotary embedding;
              where each token has a timestep (TI2V): (24 + 7·i)·d; for VACE of n blocks: (n + 1)·d·i;
              sharded: the weights of two blocks, gathered; with a cache: what is kept of every block, see ``cached``
    decode    per pixel, in float32: ``_PLANES`` planes as wide as the decoder's last blocks; encoding likewise

The coefficients were counted, operation by operation, at the published sizes (``tests/engine/test_footprints.py``).
``model_sizes`` has the sizes of published models and of checkpoints, ``memory_table`` prints a table.
"""

from __future__ import annotations

from math import ceil, prod

from msgspec import Struct

from shared.messages import Footprint, ModelCard
from workers.engine.acceleration.cost import Dit
from workers.engine.parallel.layouts import offered
from workers.pool import PoolLayout
from workers.pool_acceleration import Offload, Quant

#: What a device's runtime keeps for itself beside tensors: context, libraries' workspaces, communication buffers.
#: An estimate: 0.5 to 2 GB are usual.
RUNTIME = 3 << 29
WIDTHS = (1, 2, 4, 8)
_FLOAT = 4
#: Planes of float32 alive at the worst moment, by (residual, decoding), in units of the base width of the VAE.
_PLANES = {(False, True): 50.9, (False, False): 37.4, (True, True): 84.3, (True, False): 46.2}
#: Columns that a rank computes beside its own where the VAE is split: less than a sixteenth of its part.
_HALO = 1.06
_BLOCKS_GATHERED = 2


class Vae(Struct, frozen=True):
    """What of a VAE's config decides its memory. ``residual``: of Wan 2.2's kind; ``patch``: pixels per side that its
    first layer takes together."""

    base: int = 96
    decoder_base: int = 96
    residual: bool = False
    patch: int = 1
    spatial: int = 8
    temporal: int = 4


class Sizes(Struct, frozen=True):
    """A model's parts, in parameters.

    Attributes:
        dit: the shape of a transformer.
        transformer: parameters of one.
        experts: how many there are.
        vace_blocks: of VACE.
        timestep_per_token: TI2V.
        takes_image: pixels are encoded too.
    """

    dit: Dit
    transformer: int
    text_encoder: int
    vae: Vae
    vae_parameters: int
    experts: int = 1
    image_encoder: int = 0
    vace_blocks: int = 0
    timestep_per_token: bool = False
    takes_image: bool = False

    @property
    def block(self) -> int:
        """Parameters of one block of a transformer."""
        return self.transformer // (self.dit.layers + self.vace_blocks)


class Split(Struct, frozen=True):
    """How a group shares a job: ranks, over how many of them a sequence is spread, whether the guidance's halves are on
    different ranks, what is sharded."""

    width: int = 1
    sequence: int = 1
    cfg: int = 1
    dit_fsdp: bool = False
    t5_fsdp: bool = False
    vae_parallel: bool = True


def transformer_parameters(dit: Dit, vace_blocks: int = 0, vace_channels: int = 96) -> int:
    """Parameters of ``WanTransformer3DModel``, or of ``WanVACETransformer3DModel``, of that shape."""
    d, volume = dit.width, prod(dit.patch)
    attention = 4 * (d * d + d) + 2 * d
    image = 2 * (d * d + d) + d if dit.image_width else 0
    block = 2 * attention + 2 * d + (2 * d * dit.ffn + dit.ffn + d) + 6 * d
    patches = d * dit.in_channels * volume + d
    time = (dit.time_width * d + d) + (d * d + d) + (6 * d * d + 6 * d)
    text = (dit.text_width * d + d) + (d * d + d)
    seen = dit.image_width
    eyes = (2 * seen + (seen * seen + seen) + (seen * d + d) + 2 * d) if seen else 0
    out = d * dit.out_channels * volume + dit.out_channels * volume + 2 * d
    total = dit.layers * (block + image) + patches + time + text + eyes + out
    if vace_blocks:
        total += vace_blocks * (block + d * d + d) + (d * d + d) + d * vace_channels * volume + d
    return total


def weights(sizes: Sizes, split: Split, item: int, *, offload: Offload = "none", quant: Quant = "none") -> int:
    """Bytes of weights on each rank at the worst moment; the VAE's in float32, a quantised transformer's one byte each,
    all others ``item`` bytes each."""
    expert = sizes.transformer * (1 if quant != "none" else item)
    text, vae, eyes = sizes.text_encoder * item, sizes.vae_parameters * _FLOAT, sizes.image_encoder * item
    if offload == "model":
        return max(expert, text, vae, eyes)
    dit = expert if offload == "experts" else sizes.experts * expert
    shared_dit = ceil(dit / split.width) if split.dit_fsdp else dit
    shared_text = ceil(text / split.width) if split.t5_fsdp else text
    return shared_dit + shared_text + vae + eyes


def tokens(sizes: Sizes, pixels: int, frames: int) -> int:
    """Of the sequence of a video of that many pixels and frames."""
    side = sizes.vae.spatial * sizes.dit.patch[1]
    return ((frames - 1) // sizes.vae.temporal + 1) * (pixels // side**2)


def denoising(sizes: Sizes, split: Split, item: int, pixels: int, frames: int) -> int:
    """Bytes that a step takes on each rank, without a cache."""
    dit, whole = sizes.dit, tokens(sizes, pixels, frames)
    d, part = dit.width, ceil(whole / split.sequence)
    per_token = max((2 * dit.ffn + 4 * d) * item, d * item + 20 * d)
    if sizes.timestep_per_token:
        per_token += (24 + 7 * item) * d
    if sizes.vace_blocks:
        per_token += (sizes.vace_blocks + 1) * d * item
    gathered = _BLOCKS_GATHERED * sizes.block * item if split.dit_fsdp else 0
    return per_token * part + 8 * dit.head_size * whole + gathered


def cached(sizes: Sizes, split: Split, item: int, pixels: int, frames: int) -> int:
    """Bytes that the attention cache keeps on each rank while it is on: of each block one output, for each half of
    guidance that is computed here."""
    part = ceil(tokens(sizes, pixels, frames) / split.sequence)
    blocks = (sizes.dit.layers + sizes.vace_blocks) * sizes.experts
    return blocks * part * sizes.dit.width * item * (2 // split.cfg)


def coding(sizes: Sizes, split: Split, pixels: int, *, decode: bool) -> int:
    """Bytes that decoding, or encoding, takes on each rank: the same for any number of frames."""
    vae = sizes.vae
    planes = _PLANES[vae.residual, decode] * (vae.decoder_base if decode else vae.base)
    shared = _HALO / split.width if split.vae_parallel and split.width > 1 else 1.0
    return ceil(planes * _FLOAT * pixels / vae.patch**2 * shared)


def job(sizes: Sizes, split: Split, item: int, pixels: int, frames: int, *, cache: bool = False) -> int:
    """Bytes that a job of that size adds on each rank at its worst moment."""
    step = denoising(sizes, split, item, pixels, frames)
    if cache:
        step += cached(sizes, split, item, pixels, frames)
    stages = [step, coding(sizes, split, pixels, decode=True)]
    if sizes.takes_image:
        stages.append(coding(sizes, split, pixels, decode=False))
    return max(stages)


def split_of(sizes: Sizes, width: int, *, dit_fsdp: bool = False, t5_fsdp: bool = False) -> Split:
    """The layout that a group of that width has unless its pool says otherwise."""
    first = offered(width, sizes.dit.heads, PoolLayout(dit_fsdp=dit_fsdp, t5_fsdp=t5_fsdp))[0]
    return Split(width, first.ulysses * first.ring, first.cfg, dit_fsdp, t5_fsdp, first.vae_parallel)


def of_card(
    sizes: Sizes,
    card: ModelCard,
    item: int,
    *,
    runtime: int = RUNTIME,
    offload: Offload = "none",
    quant: Quant = "none",
) -> tuple[Footprint, ...]:
    """For the card: every width, without and with sharding.

    Args:
        item: bytes of a weight or activation.
        runtime: bytes that the device's runtime takes.
        offload, quant: as the pool has them.
    """
    found = []
    for width in WIDTHS:
        for dit_fsdp, t5_fsdp in ((False, False), (False, True), (True, False), (True, True)):
            if width == 1 and (dit_fsdp or t5_fsdp):
                continue
            split = split_of(sizes, width, dit_fsdp=dit_fsdp, t5_fsdp=t5_fsdp)
            largest = job(sizes, split, item, card.max_pixels, card.num_frames.max, cache=card.cache is not None)
            found.append(
                Footprint(
                    width=width,
                    dit_fsdp=dit_fsdp,
                    t5_fsdp=t5_fsdp,
                    weights=weights(sizes, split, item, offload=offload, quant=quant) + runtime,
                    largest_job=largest,
                )
            )
    return tuple(found)
