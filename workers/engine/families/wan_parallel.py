"""What is ours inside diffusers' ``WanTransformer3DModel``, and its kin with VACE's blocks: self-attention (device's
own kernel, Ulysses, ring, the cache) and the split of the sequence around the blocks. Installed once; ``Sequence`` then
says which layout and which cache a job has, so that one loaded model serves jobs of every layout.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from workers.engine.acceleration import projections, step_cache
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.acceleration.compiling import Project
from workers.engine.devices.base import Device
from workers.engine.families import wan_times
from workers.engine.parallel import ring, ulysses
from workers.engine.parallel.mesh import Place


class Sequence:
    """What the hooks and processors of one transformer share: the job's place and cache, the branch being computed
    and the length of the sequence being split."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.place = Place()
        self.cache = Cache(None, 0)
        self.branch = 0
        self.length = 0
        self.project: Project = projections.project
        self.skipper = step_cache.Skipper(self)

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks that hold the sequence together."""
        return self.place.sequence_group

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the whole sequence to this rank's part of it, [B, s, H, D] each."""
        place, length = self.place, self.length
        if place.ulysses_group is not None:
            q, k, v = ulysses.to_heads((q, k, v), place.ulysses_group)
        if place.ring_group is None:
            out = self.device.attention(q, k[:, :length], v[:, :length])
        else:
            out = ring.attention(q, k, v, place.ring_group, length, self.device.attention_with_lse)
        return out if place.ulysses_group is None else ulysses.to_sequence(out, place.ulysses_group)


class SelfAttention:
    """Attention processor of one block's ``attn1``; the formulas are those of diffusers' ``WanAttnProcessor``.

    Args:
        expert: index of the transformer in its checkpoint, part of the cache's key.
        block: index of the block.
        sequence: shared with the whole transformer.
    """

    def __init__(self, expert: int, block: int, sequence: Sequence) -> None:
        self._expert, self._block, self._sequence = expert, block, sequence

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[B, s, H·D] → [B, s, H·D], where s is this rank's part of the sequence."""
        assert rotary_emb is not None
        key = (self._expert, self._sequence.branch, self._block)
        return self._sequence.cache.through(key, lambda: self._compute(attn, hidden_states, rotary_emb))

    def _compute(self, attn: Any, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self._sequence.project(attn, x, rotary)
        out = self._sequence.attend(q, k, v)
        projected: Tensor = attn.to_out[0](out.flatten(2).type_as(q))
        return projected


def install(transformer: nn.Module, expert: int, device: Device) -> Sequence:
    """Put our attention and the sequence's split and gathering into the transformer; gives their shared state."""
    model: Any = transformer
    sequence = Sequence(device)
    vace = tuple(getattr(model, "vace_blocks", ()))
    for index, block in enumerate((*model.blocks, *vace)):
        block.attn1.processor = SelfAttention(expert, index, sequence)

    def split_rotary(_module: nn.Module, _args: object, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        sequence.length = out[0].shape[1]
        if sequence.group is None:
            return out
        return ulysses.split_sequence(out[0], sequence.group), ulysses.split_sequence(out[1], sequence.group)

    def split_tokens(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if sequence.group is None:
            return None
        return (ulysses.split_sequence(args[0], sequence.group), *args[1:]), kwargs

    def split_control(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """VACE's first block comes before the others; what it gives to the next ones and to them is a part already."""
        if sequence.group is None:
            return None
        tokens, text, control, *rest = args
        parts = (ulysses.split_sequence(each, sequence.group) for each in (tokens, control))
        return (next(parts), text, next(parts), *rest)

    def part(tokens: Tensor) -> Tensor:
        return tokens if sequence.group is None else ulysses.split_sequence(tokens, sequence.group)

    def gather(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
        if sequence.group is None:
            return out
        return ulysses.gather_sequence(out, sequence.group, sequence.length)

    usual = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        """Its exchanges are fenced among the ranks of the sequence; with sharded weights there are those of all."""
        guard = sequence.place.guard
        if guard is None or isinstance(model, FSDPModule):
            return usual(*args, **kwargs)
        with guard(device.is_out_of_memory):
            return usual(*args, **kwargs)

    model.forward = forward
    model.rope.register_forward_hook(split_rotary)
    wan_times.install(model.condition_embedder, part)
    if vace:
        vace[0].register_forward_pre_hook(split_control)
    model.blocks[0].register_forward_pre_hook(split_tokens, with_kwargs=True)
    model.proj_out.register_forward_hook(gather)
    step_cache.install(model, sequence.skipper)
    return sequence
