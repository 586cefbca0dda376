"""What training does faster than sampling to the same result: few frames of a clip, a short text for a long one."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

from workers.training.material import Batch
from workers.training.text import LONGEST

TEXT_LENGTH: Final = 512


class ChosenFrames(nn.Module):
    """A stand-in for the rotary embedding that places the given frames where they belong in the whole clip.

    Training on four frames out of seventeen then sees the same positions as sampling all of them.
    """

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope
        self.frames: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.frames is None:
            return self.rope(hidden_states)
        _, _, count, height, width = hidden_states.shape
        longest = int(self.frames.max()) + 1
        whole = hidden_states.new_empty(1).expand(1, 1, longest, height, width)
        tables = []
        for table in self.rope(whole):
            grid = table.view(longest, height // 2 * (width // 2), -1)
            tables.append(grid[self.frames].reshape(1, count * grid.shape[1], 1, -1))
        return tables[0], tables[1]


class PaddedCrossAttention(WanAttnProcessor):
    """Cross-attention over a short text plus one zero token that counts as many: the same result as padding to 512."""

    def __init__(self) -> None:
        super().__init__()
        self.bias: torch.Tensor | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)


def pad_text(text: torch.Tensor, length: int, processor: PaddedCrossAttention) -> torch.Tensor:
    """Append one zero token to `text` [b, n, width] and let it weigh as the `length - n` that diffusers appends."""
    batch, tokens, width = text.shape
    bias = torch.zeros(1, 1, 1, tokens + 1)
    bias[..., -1] = math.log(max(1, length - tokens))
    processor.bias = bias
    return torch.cat([text, text.new_zeros(batch, 1, width)], 1)


def model_inputs(
    batch: Batch, noisy: torch.Tensor, sigma: torch.Tensor, processor: PaddedCrossAttention
) -> dict[str, torch.Tensor]:
    """What the transformer is called with for `noisy` latents of `batch` at noise levels `sigma` [b]."""
    # All of one length: what the attention adds for the padding is kept from one batch to the next.
    alike = F.pad(batch.words, (0, 0, 0, LONGEST - batch.words.shape[1]))
    return {
        "hidden_states": torch.cat([noisy, batch.mask, batch.condition], 1),
        "timestep": sigma * 1000,
        "encoder_hidden_states": pad_text(alike, TEXT_LENGTH, processor),
    }
