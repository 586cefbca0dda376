"""Ring attention, alone and with Ulysses, against one softmax over the whole: float32, one thread, gloo.

Ring merges what other kernels add up in another order, so its results are not the same bits: attention itself is held
to 1e-6 of the largest output, and what a job makes of it, after guidance has multiplied each step's rounding, to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from msgspec.structs import replace

from shared.messages import AttentionCache, JobRequest, Layout, Parallel
from tests.engine import cases
from tests.engine.requests import image_request, picture, request
from tests.support.gloo import Gloo, Ranks
from workers.engine import devices
from workers.engine.families.wan_parallel import Sequence
from workers.engine.parallel import ring, ulysses

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]
HEADS = 4


def tensors(length: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(1, length, HEADS, 24, generator=generator) for _ in range(3))


def attend(ranks: Ranks, lengths: tuple[int, ...]) -> dict[tuple[int, int, int], float]:
    """The largest difference from attention over the whole, relative to its largest output, by degrees and length."""
    mesh, device = cases.mesh(ranks.world), devices.open_device("cpu")
    found = {}
    for degree in (each for each in (1, 2, 4) if ranks.world % each == 0 and each < ranks.world):
        layout = Layout(ulysses=degree, ring=ranks.world // degree)
        sequence = Sequence(device)
        sequence.place = mesh.place(layout)
        assert sequence.group is not None
        for length in lengths:
            sequence.length = length
            whole = device.attention(*tensors(length))
            parts = (ulysses.split_sequence(each, sequence.group) for each in tensors(length))
            mine = sequence.attend(*parts).flatten(2)
            out = ulysses.gather_sequence(mine, sequence.group, length).unflatten(2, (HEADS, -1))
            found[layout.ulysses, layout.ring, length] = float((out - whole).abs().max() / whole.abs().max())
    return found


@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_length_is_within_1e_6_of_one_softmax(gloo: Groups, world: int) -> None:
    """3 on 8 ranks: some blocks are padding only; 8 × 16 + 1: the last block is padding but for what is left."""
    for found in gloo(world).run(attend, (3, 75, 129, 128)):
        assert {(u, r) for u, r, _ in found} == {(u, world // u) for u in (1, 2, 4) if u < world}
        for case, difference in found.items():
            assert difference <= 1e-6, case
    assert max(found.values()) > 0


def test_merging_is_the_formula() -> None:
    """In float64, where rounding hides nothing: whatever the blocks and their scores' size."""
    q, k, v = (each.double() * 5 for each in tensors(30))
    scores = torch.einsum("bqhd,bkhd->bqhk", q, k)

    def part(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        some = scores[..., keys]
        return torch.einsum("bqhk,bkhd->bqhd", some.softmax(-1), v[:, keys]), some.logsumexp(-1)

    whole, lse = part(slice(None))
    out, merged = part(slice(0, 1))
    for keys in (slice(1, 17), slice(17, 30)):
        out, merged = _merge64(out, merged, *part(keys))
    assert torch.allclose(out, whole, rtol=1e-12, atol=1e-12)
    assert torch.allclose(merged, lse, rtol=1e-12, atol=1e-12)


def _merge64(*parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``merge`` takes its second output to float32: here it is to stay as it is."""
    out, lse, part, part_lse = parts
    none = torch.zeros_like(part, dtype=torch.float32)
    scaled, both = ring.merge(out, lse, none, part_lse)
    return scaled + part * (part_lse - both).exp()[..., None], both


def together(
    ranks: Ranks, folder: Path, asked: JobRequest, image: Path | None, fsdp: bool = False
) -> list[tuple[Layout, cases.Outcome]]:
    """The job in every layout with a ring that puts all ranks to work."""
    model = cases.family(folder, ranks.world, fsdp)
    made = []
    for layout in (each for each in model.layouts if each.ring > 1):
        if layout.cfg * layout.ulysses * layout.ring < ranks.world:
            continue
        wish = Parallel(cfg_size=layout.cfg, ulysses_size=layout.ulysses, ring_size=layout.ring)
        chosen = model.check(replace(asked, parallel=wish))
        assert chosen == layout
        job = cases.job_of(asked, chosen, image)
        made.append((chosen, cases.outcome(model, job, cases._course(cases.lockstep(ranks)))))
    return made


def close(alone: cases.Outcome, made: list[list[tuple[Layout, cases.Outcome]]]) -> None:
    largest = np.abs(alone.latents).max()
    for rank, layouts in enumerate(made):
        assert layouts
        for index, (layout, outcome) in enumerate(layouts):
            assert layout.ring > 1
            assert np.abs(outcome.latents - alone.latents).max() <= 1e-5 * largest, (rank, layout)
            np.testing.assert_array_equal(outcome.latents, made[0][index][1].latents, "the ranks differ")
            if rank == 0:
                assert np.abs(outcome.frames.astype(int) - alone.frames.astype(int)).max() <= 1


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_job_in_every_layout_with_a_ring(gloo: Groups, checkpoints: Folders, tmp_path: Path, world: int) -> None:
    """75 tokens, which no degree but 1 divides; with the attention cache on."""
    folder, image = checkpoints("wan21-i2v"), picture(tmp_path, 80, 48)
    cache = AttentionCache(start_step=0, interval=2, end_step=2)
    asked = image_request(width=80, height=48, num_frames=17, cache=cache)
    alone = cases.alone(folder, asked, image)
    assert alone.reused > 0
    made = gloo(world).run(together, folder, asked, image)
    assert (2, 1, world // 2) in {(each.cfg, each.ulysses, each.ring) for each, _ in made[0]} or world == 2
    close(alone, made)


def test_with_sharded_weights(gloo: Groups, checkpoints: Folders) -> None:
    folder = checkpoints("wan21-t2v")
    close(cases.alone(folder, request()), gloo(2).run(together, folder, request(), None, True))


def test_the_ranks_of_a_sequence_are_neighbours(gloo: Groups) -> None:
    """Rank order is [replica][cfg][ring][ulysses]."""
    for rank, (sequence, ulysses_ranks, ring_ranks, cfg_ranks) in enumerate(gloo(8).run(neighbours)):
        assert sequence == [0, 1, 2, 3] if rank < 4 else [4, 5, 6, 7]
        assert ulysses_ranks == [rank - rank % 2, rank - rank % 2 + 1]
        assert ring_ranks == sorted([rank, rank ^ 2])
        assert cfg_ranks == [rank % 4, rank % 4 + 4]


def neighbours(ranks: Ranks) -> tuple[list[int], ...]:
    place = cases.mesh(ranks.world).place(Layout(cfg=2, ulysses=2, ring=2))
    groups = (place.sequence_group, place.ulysses_group, place.ring_group, place.cfg_group)
    return tuple(dist.get_process_group_ranks(group) for group in groups if group is not None)
