"""What the demo model's training draws from, made of the few photographs that are kept for examination."""

from __future__ import annotations

import torch

from workers.training import clips, codec, text
from workers.training.material import Material


def heldout_material() -> Material:
    """The held-out photos as the bank, with a text encoder that has learnt nothing."""
    tokenizer = text.build_tokenizer()
    bank = torch.stack([clips.load_photo(path, clips.SOURCE_PX) for path in clips.photos("heldout").values()])
    encoder = text.build_encoder(0, len(tokenizer)).eval()
    return Material((bank * 255).to(torch.uint8), codec.fit(bank * 2 - 1), tokenizer, encoder)
