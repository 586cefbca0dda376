"""A genuine `AutoencoderKLWan` whose weights are computed: a principal-component codec of 8x8 pixel patches per frame.

Nothing is trained. Three identities turn the network into a linear map: silu(x) - silu(-x) = x carries signed values
through the activations; one large constant channel makes the RMS norms a nearly fixed scale; residual and attention
blocks whose last layer is zero are the identity. Four latent channels carry no picture: they are 1 along the left,
right, top and bottom border and 0 elsewhere (the zero padding of the last convolution makes them), because a Wan
transformer has rotary positions only and could not otherwise know where the middle of the frame is. The decoder does
not read them. Compression in time is 1.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

PATCH: Final = 8
COMPONENTS: Final = 44
BORDERS: Final = 4
LATENT_CHANNELS: Final = COMPONENTS + BORDERS
_CARRIER: Final = 300.0


@dataclass(frozen=True)
class Basis:
    """`rows` [components, 3*8*8] orthonormal, `deviation` [components] of each coefficient over the pictures seen."""

    rows: torch.Tensor
    deviation: torch.Tensor

    @property
    def latent_scale(self) -> torch.Tensor:
        """What the raw coefficients are divided by, [latent channels]: half-way between raw and whitened, mean square
        1 over the components, and 1 for the borders."""
        scale = self.deviation.sqrt() * self.deviation.mean().sqrt()
        return torch.cat([scale, torch.ones(BORDERS)])


def patches(frames: torch.Tensor) -> torch.Tensor:
    """[..., 3, H, W] to [..., 3*8*8, H/8, W/8], channels ordered as diffusers' `patchify` orders them."""
    lead, (height, width) = frames.shape[:-3], frames.shape[-2:]
    blocks = frames.reshape(*lead, 3, height // PATCH, PATCH, width // PATCH, PATCH)
    count = len(lead)
    order = [*range(count), count, count + 4, count + 2, count + 1, count + 3]
    return blocks.permute(*order).reshape(*lead, 3 * PATCH * PATCH, height // PATCH, width // PATCH)


def fit(pictures: torch.Tensor) -> Basis:
    """The leading components (about mid grey, not about the mean) of `pictures` [n, 3, H, W] in [-1, 1]."""
    columns = patches(pictures).movedim(1, -1).reshape(-1, 3 * PATCH * PATCH).to(torch.float64)
    values, vectors = torch.linalg.eigh(columns.T @ columns / len(columns))
    rows = vectors.flip(1).T[:COMPONENTS]
    rows = rows * torch.sign(rows.sum(1, keepdim=True) + 1e-9)
    return Basis(rows.to(torch.float32).contiguous(), values.flip(0)[:COMPONENTS].sqrt().to(torch.float32))


def encode(basis: Basis, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents [b, 48, t, H/8, W/8] of `video` [b, 3, t, H, W]: what the VAE below gives, only faster."""
    coefficients = torch.einsum("cp,btphw->bcthw", basis.rows, patches(video.transpose(1, 2)))
    coefficients = coefficients / basis.latent_scale[:COMPONENTS, None, None, None]
    batch, _, frames, height, width = coefficients.shape
    border = torch.zeros(BORDERS, height, width)
    border[0, :, 0] = border[1, :, -1] = border[2, 0] = border[3, -1] = 1
    return torch.cat([coefficients, border[None, :, None].expand(batch, -1, frames, -1, -1)], 1)


def decode(basis: Basis, latents: torch.Tensor) -> torch.Tensor:
    """Video [b, 3, t, H, W] of normalised latents [b, 48, t, H/8, W/8]."""
    coefficients = latents[:, :COMPONENTS] * basis.latent_scale[:COMPONENTS, None, None, None]
    blocks = torch.einsum("cp,bcthw->btphw", basis.rows, coefficients)
    batch, frames, _, height, width = blocks.shape
    blocks = blocks.reshape(batch, frames, 3, PATCH, PATCH, height, width).permute(0, 2, 1, 5, 4, 6, 3)
    return blocks.reshape(batch, 3, frames, height * PATCH, width * PATCH)


def pixel_weight(basis: Basis) -> torch.Tensor:
    """What a squared error in each normalised latent channel costs in pixels, [48], mean 1; the borders little."""
    weight = basis.latent_scale.square()
    weight = weight / weight[:COMPONENTS].mean()
    weight[COMPONENTS:] = 0.05
    return weight


def _centre(conv: torch.nn.Conv3d, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Make `conv` the linear map `matrix` of the present frame's own position."""
    conv.weight.zero_()
    middle_y, middle_x = conv.kernel_size[1] // 2, conv.kernel_size[2] // 2
    conv.weight[: matrix.shape[0], : matrix.shape[1], -1, middle_y, middle_x] = matrix
    assert conv.bias is not None
    conv.bias.zero_()
    if bias is not None:
        conv.bias[: len(bias)] = bias


@torch.no_grad()
def build_vae(basis: Basis) -> AutoencoderKLWan:
    """The codec as the network: `encode(x).latent_dist.mode()`, normalised by the config's deviations, is `encode`."""
    pixels, kept, base = 3 * PATCH * PATCH, COMPONENTS, 2 * COMPONENTS + 1
    vae = AutoencoderKLWan(
        base_dim=base,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1],
        num_res_blocks=0,
        temperal_downsample=[],
        in_channels=pixels,
        out_channels=pixels,
        patch_size=PATCH,
        scale_factor_spatial=PATCH,
        scale_factor_temporal=1,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[round(value, 6) for value in basis.latent_scale.tolist()],
    ).eval()
    for parameter in vae.parameters():
        parameter.zero_()
    for module in vae.modules():
        if type(module).__name__ == "WanRMS_norm":
            module.gamma.fill_(_CARRIER / base**0.5)
    rows, same, none = basis.rows, torch.eye(kept), torch.zeros(kept, 1)
    carrier = torch.cat([torch.zeros(2 * kept), torch.tensor([_CARRIER])])
    _centre(vae.encoder.conv_in, torch.cat([rows, -rows, torch.zeros(1, pixels)]), carrier)
    out = vae.encoder.conv_out
    _centre(out, torch.cat([same, -same, none], 1))
    for channel, (row, column) in enumerate(((1, 0), (1, 2), (0, 1), (2, 1)), start=kept):
        out.weight[channel, 2 * kept, -1, row, column] = -1 / _CARRIER
        out.bias[channel] = 1
    out.bias[LATENT_CHANNELS:] = -30
    _centre(vae.quant_conv, torch.eye(2 * LATENT_CHANNELS))
    _centre(vae.post_quant_conv, torch.eye(LATENT_CHANNELS))
    back = torch.cat([torch.cat([same, -same]), torch.zeros(1, kept)])
    _centre(vae.decoder.conv_in, back, carrier)
    _centre(vae.decoder.conv_out, torch.cat([rows.T, -rows.T, torch.zeros(pixels, 1)], 1))
    return vae


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each clip in a batch, both [b, 3, t, H, W] in [-1, 1]."""
    error = F.mse_loss(one.clamp(-1, 1), other.clamp(-1, 1), reduction="none").mean((1, 2, 3, 4))
    return 10 * torch.log10(4 / error.clamp_min(1e-6))
