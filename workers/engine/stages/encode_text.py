"""Prompt → embeddings for the transformer's cross-attention, by umT5.

The last embeddings are kept: the negative prompt is nearly always the same. They are kept at their true length, and
only when all ranks have them, so that all ranks know the same prompts and never wait for one that knows more.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ftfy
import torch
from msgspec import Struct
from torch import Tensor

#: Bytes of embeddings kept: a prompt of 100 tokens takes 1.6 MB at 4096 × float32.
KEPT_BYTES = 64 * 1024 * 1024


class Encoded(Struct, frozen=True):
    """One prompt's embeddings [1, tokens, D], float32, under the hash of its cleaned text."""

    key: bytes
    embeddings: Tensor


def clean(prompt: str) -> str:
    """The prompt as Wan's reference cleans it: text repaired, HTML entities resolved, white space collapsed."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder:
    """umT5 and the embeddings of the last prompts.

    Args:
        tokenizer: of transformers.
        model: ``UMT5EncoderModel``, possibly sharded; None on ranks that get the embeddings of rank 0.
        device: where the embeddings are wanted.
        length: tokens that a prompt is cut to, and its embeddings are zero-padded to.
        width: D of the embeddings.
        run_on: where the model takes its tokens.
        share: gives rank 0's tensor to all ranks, in place, if only rank 0 encodes.
        kept_bytes: bound on what is kept.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: Any | None,
        device: torch.device,
        length: int,
        width: int,
        *,
        run_on: torch.device,
        share: Callable[[Tensor], None] | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.model = model
        self._tokenizer, self._device, self._length, self._width = tokenizer, device, length, width
        self._run_on, self._share, self._kept_bytes = run_on, share, kept_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def kept_bytes(self) -> int:
        """Bytes of the embeddings that are kept."""
        return sum(map(_bytes, self._kept.values()))

    def encode(self, prompts: tuple[str, ...]) -> tuple[Encoded, ...]:
        """Their embeddings, those that are kept and those that have to be computed; nothing is kept yet. Collective
        where the model is sharded or rank 0 alone has it."""
        made: dict[bytes, Encoded] = {}
        for text in map(clean, prompts):
            key = hashlib.sha256(text.encode()).digest()
            if key not in made:
                kept = self._kept.get(key)
                made[key] = Encoded(key, self._embed(text) if kept is None else kept)
        return tuple(made[hashlib.sha256(clean(prompt).encode()).digest()] for prompt in prompts)

    def keep(self, encoded: tuple[Encoded, ...]) -> tuple[Tensor, ...]:
        """The embeddings [1, length, D], zero-padded as the model was trained, and kept as long as there is room: the
        longest unused go first. Only when ``encode`` has succeeded on all ranks."""
        for each in encoded:
            self._kept[each.key] = each.embeddings
            self._kept.move_to_end(each.key)
        while self._kept and self.kept_bytes > self._kept_bytes:
            self._kept.popitem(last=False)
        return tuple(self._padded(each.embeddings) for each in encoded)

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor:
        """At the prompt's true length."""
        tokens = self._tokenizer(text, truncation=True, max_length=self._length, return_tensors="pt")
        if self.model is None:
            made = torch.empty(1, tokens.input_ids.shape[1], self._width, device=self._device)
        else:
            ids, mask = tokens.input_ids.to(self._run_on), tokens.attention_mask.to(self._run_on)
            made = self.model(ids, mask).last_hidden_state.to(self._device, torch.float32).contiguous()
        if self._share is not None:
            self._share(made)
        return made

    def _padded(self, embeddings: Tensor) -> Tensor:
        padded = embeddings.new_zeros(1, self._length, self._width)
        padded[:, : embeddings.shape[1]] = embeddings
        return padded


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
