"""Prompt → embeddings for the transformer's cross-attention, by umT5."""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from typing import Any

import ftfy
import torch
from torch import Tensor

#: Embeddings kept: at 512 × 4096 in bfloat16 each takes 4 MiB.
KEPT = 32


def clean(prompt: str) -> str:
    """The prompt as Wan's reference cleans it: text repaired, HTML entities resolved, white space collapsed."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder:
    """umT5 with the last few results kept: the negative prompt is nearly always the same.

    Args:
        tokenizer: of transformers.
        model: ``UMT5EncoderModel``, possibly sharded.
        device: where the model takes its tokens.
        length: tokens that a prompt is cut to, and its embeddings are zero-padded to.
    """

    def __init__(self, tokenizer: Any, model: Any, device: torch.device, length: int) -> None:
        self._tokenizer, self._model, self._device, self._length = tokenizer, model, device, length
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(self, prompt: str) -> Tensor:
        """Embeddings [1, length, D]. The prompt is encoded at its true length; the rest is zero, as the model was
        trained."""
        text = clean(prompt)
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        tokens = self._tokenizer(text, truncation=True, max_length=self._length, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        encoded = self._model(ids, mask).last_hidden_state
        padded: Tensor = encoded.new_zeros(1, self._length, encoded.shape[-1])
        padded[:, : encoded.shape[1]] = encoded
        self._kept[text] = padded
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return padded
