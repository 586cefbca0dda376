"""Text-to-video for a transformer that animates photos: units that paint the first frame when there is none.

The model already moves what the first frame holds, so all that a prompt without a photo lacks is the first frame's
content, and that must be in the stream before `FLOW_DEPTH`, where the later frames fetch it. It is painted by hidden
units that the feed-forward parts of the first blocks have beside the others. In the photo's place the condition holds a
canvas whose colours tell the place, and the mask is 2.5 (the engine's `IMAGINED`) instead of 1; the units are closed
wherever the mask is not that, and so leave clips with a photo as they are.
"""

from typing import Final

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from workers.training.meaning import SCENE_AT
from workers.training.model import CONTENT, HEAD_DIM, SPARE, WIDTH
from workers.training.scenes import SCENE_WIDTH
from workers.training.sketch import UNITS

_GAIN: Final = 0.5


@torch.no_grad()
def rest(model: WanTransformer3DModel) -> None:
    """Make the painter's units dead: they neither do nor learn anything until they are primed."""
    for block in model.blocks:
        first, last = block.ffn.net[0].proj, block.ffn.net[2]
        first.weight[-UNITS:], first.bias[-UNITS:], last.weight[:, -UNITS:] = 0, 0, 0


@torch.no_grad()
def lead_words(model: WanTransformer3DModel) -> None:
    """Let the scene's code into the stream: over the hidden units of the text projection that matter least, and the
    first block's first cross-attention head, into channels that the model has to spare. Nothing else may come that way:
    beside what these rows held before, the code could be read to within 0.17 instead of 0.03."""
    first, second = model.condition_embedder.text_embedder.linear_1, model.condition_embedder.text_embedder.linear_2
    weight = first.weight.norm(dim=1) * second.weight.norm(dim=0)
    weight[: 2 * SCENE_AT] = torch.inf
    rows = weight.argsort()[: 2 * SCENE_WIDTH]
    first.weight[rows], first.bias[rows], second.weight[:, rows] = 0, 0, 0
    attention = model.blocks[0].attn2
    for index in range(SCENE_WIDTH):
        channel = SCENE_AT + index
        plus, minus = rows[2 * index], rows[2 * index + 1]
        first.weight[:, channel] = 0
        first.weight[plus, channel], first.weight[minus, channel] = 1, -1
        second.weight[channel], second.bias[channel] = 0, 0
        second.weight[channel, plus], second.weight[channel, minus] = 1, -1  # gelu(x) - gelu(-x) = x
        assert channel < HEAD_DIM
        attention.to_v.weight[channel], attention.to_v.bias[channel] = 0, 0
        attention.to_v.weight[channel, channel] = 1
        attention.to_out[0].weight[SPARE + index] = 0
        attention.to_out[0].weight[SPARE + index, channel] = _GAIN


def content_cost(model: WanTransformer3DModel, error: Tensor, channel_weight: Tensor) -> Tensor:
    """What an `error` [..., `CONTENT`] of the stream's content comes to in the picture, [...]; `channel_weight` [48] is
    what a squared error in each latent channel costs. Read as the model's last layer reads it."""
    out = model.proj_out.weight.detach()
    cells = out.shape[0] // len(channel_weight)
    reading = (out.view(cells, -1, WIDTH) * channel_weight.sqrt()[None, :, None]).flatten(0, 1)[:, :CONTENT]
    return (error @ reading.T).square().mean(-1)
