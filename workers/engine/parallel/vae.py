"""The VAE split by width over all ranks, exactly: each rank keeps its columns, takes one column of each neighbour
before every convolution that looks sideways, and sees the whole width in the one attention layer.

Unlike tiling this changes nothing in the result. Encode and decode, any width of at least one latent column for each
rank: where it does not divide, the first ranks have one column more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor, nn

from workers.engine.parallel.collective import collective

#: Elements of a convolution's input above which torch takes oneDNN on one thread.
_ONEDNN_ABOVE = 20480


class WidthSplit:
    """The split of one VAE over one group. Installed once; it acts inside ``active()`` only.

    Args:
        vae: ``AutoencoderKLWan``; its convolutions are wrapped.
        group: the ranks that share the width, in order from left to right.
    """

    def __init__(self, vae: Any, group: dist.ProcessGroup) -> None:
        self.group = group
        self.degree = dist.get_world_size(group)
        self.index = dist.get_rank(group)
        self._ranks = dist.get_process_group_ranks(group)
        self._on = False
        #: Latent columns of each rank, of the picture that is being split.
        self._shares = [1] * self.degree
        for module in (*vae.encoder.modules(), *vae.decoder.modules()):
            if isinstance(module, wan.WanCausalConv3d) and module.kernel_size[2] == 3:
                self._wrap(module, self._causal)
            elif isinstance(module, wan.WanResample) and module.mode.startswith("upsample"):
                self._wrap(module.resample[1], self._conv2d)
            elif isinstance(module, wan.WanResample) and module.mode.startswith("downsample"):
                self._wrap(module.resample, self._downsample)
            elif isinstance(module, wan.WanAttentionBlock):
                self._wrap(module, self._attention)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the VAE takes this rank's columns and gives this rank's columns."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def splits(self, columns: int) -> bool:
        """Whether a width of that many latents can be split."""
        return columns >= self.degree

    def part(self, x: Tensor, side: int = 1) -> Tensor:
        """This rank's columns of a whole picture, ``side`` of which make one of the latents'."""
        columns, more = divmod(x.shape[-1] // side, self.degree)
        self._shares = [columns + (rank < more) for rank in range(self.degree)]
        return x.split([share * side for share in self._shares], -1)[self.index].contiguous()

    def whole(self, x: Tensor, dim: int = -1) -> Tensor:
        """All ranks' columns, which lie along ``dim``, on every rank."""
        sizes = [x.shape[dim] // self._shares[self.index] * share for share in self._shares]
        if sizes[self.index] < sizes[0]:
            pad = list(x.shape)
            pad[dim] = sizes[0] - sizes[self.index]
            x = torch.cat([x, x.new_zeros(pad)], dim)
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.degree)]
        with collective():
            dist.all_gather(parts, x, group=self.group)
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)

    def _wrap(self, module: nn.Module, inside: Callable[..., Tensor]) -> None:
        usual = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return inside(module, usual, *args, **kwargs) if self._on else usual(*args, **kwargs)

        module.forward = forward

    def _widen(self, x: Tensor, left: bool, right: bool) -> Tensor:
        """``x`` with the neighbours' nearest columns, zero at the picture's borders."""
        before, after = x.new_zeros(*x.shape[:-1], 1), x.new_zeros(*x.shape[:-1], 1)
        first, last = x[..., :1].contiguous(), x[..., -1:].contiguous()
        swaps: list[dist.P2POp] = []
        if self.index > 0:
            neighbour = self._ranks[self.index - 1]
            if right:
                swaps.append(dist.P2POp(dist.isend, first, neighbour, group=self.group))
            if left:
                swaps.append(dist.P2POp(dist.irecv, before, neighbour, group=self.group))
        if self.index < self.degree - 1:
            neighbour = self._ranks[self.index + 1]
            if left:
                swaps.append(dist.P2POp(dist.isend, last, neighbour, group=self.group))
            if right:
                swaps.append(dist.P2POp(dist.irecv, after, neighbour, group=self.group))
        with collective():
            for work in dist.batch_isend_irecv(swaps):
                work.wait()
        return torch.cat([*([before] if left else []), x, *([after] if right else [])], -1)

    def _causal(self, conv: Any, _usual: object, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        _, _, above, below, past, _ = conv._padding
        if cache_x is not None and past > 0:
            x = torch.cat([cache_x, x], dim=2)
            past -= cache_x.shape[2]
        x = F.pad(self._widen(x, left=True, right=True), (0, 0, above, below, past, 0))
        return F.conv3d(x, conv.weight, conv.bias, conv.stride)

    def _conv2d(self, conv: Any, _usual: object, x: Tensor) -> Tensor:
        whole = x.numel() // x.shape[-1] * self._columns(x)
        return _conv2d_as_whole(self._widen(x, left=True, right=True), conv, (1, 0), whole)

    def _downsample(self, resample: Any, _usual: object, x: Tensor) -> Tensor:
        columns = self._columns(x) + 1
        x = F.pad(self._widen(x, left=False, right=True), (0, 0, 0, 1))
        return _conv2d_as_whole(x, resample[1], (0, 0), x.numel() // x.shape[-1] * columns)

    def _attention(self, block: Any, usual: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        whole = usual(self.whole(x))
        sizes = [x.shape[-1] // self._shares[self.index] * share for share in self._shares]
        return whole.split(sizes, -1)[self.index].contiguous()

    def _columns(self, x: Tensor) -> int:
        """Of the whole picture, where this rank's part is ``x``."""
        return x.shape[-1] // self._shares[self.index] * sum(self._shares)


def _conv2d_as_whole(x: Tensor, conv: Any, padding: tuple[int, int], whole: int) -> Tensor:
    """The convolution of a part, by the kernel that torch would take for the whole of ``whole`` elements.

    With one thread on CPU torch leaves oneDNN for its own kernel at or below 20480 input elements
    (``ConvParams::use_mkldnn`` in aten/src/ATen/native/Convolution.cpp), and the two round differently.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() <= _ONEDNN_ABOVE < whole:
        out: Tensor = torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, (1, 1), 1)
        return out
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding)
