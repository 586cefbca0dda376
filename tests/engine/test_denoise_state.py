"""What denoising carries is one explicit value: written down and continued, it ends where the whole run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shared.messages import AttentionCache
from tests.engine import cases
from tests.engine.requests import request
from workers.engine import devices
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.course import Alone, Course, Silent
from workers.engine.stages import denoise

Folders = Callable[[str], Path]
CPU = torch.device("cpu")


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_continued_from_bytes_at_every_step_gives_the_same(checkpoints: Folders, solver: str) -> None:
    model = cases.family(checkpoints("wan21-t2v"), 1)
    course = Course(Alone(), Silent(), devices.open_device("cpu").is_out_of_memory)
    asked = request(steps=4, solver=solver)
    job = cases.job_of(asked, model.check(asked), None)
    conditions = model.conditions(job, model.texts(asked, course), course)
    place = model.prepare(job.layout, Cache(None, 4))
    states = [model.start(asked, asked.seed, conditions)]
    states += model.denoising(asked, states[0], conditions, place, course)
    assert [state.step for state in states] == [0, 1, 2, 3, 4]
    for state in states[:-1]:
        resumed = denoise.from_bytes(denoise.to_bytes(state), CPU)
        assert resumed.step == state.step
        assert torch.equal(resumed.generator, state.generator)
        *_, last = model.denoising(asked, resumed, conditions, place, course)
        assert torch.equal(last.latents, states[-1].latents)


def test_bytes_that_are_no_state_are_refused() -> None:
    for data in (b"", b"\x00" * 40, denoise.to_bytes(denoise.start((1, 1, 1, 2, 2), 0, CPU))[:-8]):
        with pytest.raises(ValueError, match="not a written denoising state"):
            denoise.from_bytes(data, CPU)


def test_the_noise_is_the_same_for_the_same_seed_only() -> None:
    shape = (1, 16, 2, 8, 16)
    first, again, other = (denoise.start(shape, seed, CPU).latents for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_job_with_a_cache_continues_only_where_the_cache_holds_nothing_needed() -> None:
    cache = AttentionCache(start_step=1, interval=3, end_step=8)
    # Steps 1, 4 and 7 compute and store; 2, 3, 5, 6 and 8 reuse.
    fine = [step for step in range(12) if denoise.can_continue(step, cache, 12)]
    assert fine == [0, 1, 4, 7, 9, 10, 11]
    assert denoise.can_continue(5, None, 12)
