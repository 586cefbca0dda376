"""Timesteps per token (Wan2.2 TI2V) as diffusers' ``WanTransformer3DModel`` takes them, [B, tokens], without embedding
one per token: they have two values, that of the given frame and that of all others, so two are embedded and each token
takes its own. At 1280×704×121 that is 2 instead of 27,280 rows through a projection to six times the width, on every
rank; and no rank's result depends on how many tokens it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_Embedded = tuple[Tensor, Tensor, Tensor, Tensor | None]


def install(embedder: nn.Module, part: Callable[[Tensor], Tensor]) -> None:
    """Hook the model's ``condition_embedder``.

    Args:
        part: of [1, tokens], this rank's tokens.
    """
    later: list[Tensor] = []

    def embed_two(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        later.clear()
        if kwargs.get("timestep_seq_len") is None:
            return None
        times: Tensor = args[0]
        first, last = times.amin(), times.amax()
        later.append(part((times > first)[None].long())[0])
        return (torch.stack([first, last]), *args[1:]), {**kwargs, "timestep_seq_len": 2}

    def give_each_its_own(_module: nn.Module, _args: object, out: _Embedded) -> _Embedded:
        if not later:
            return out
        times, projected, text, image = out
        which = later.pop()
        return times[:, which], projected[:, which], text, image

    embedder.register_forward_pre_hook(embed_two, with_kwargs=True)
    embedder.register_forward_hook(give_each_its_own)
