"""What each accelerator does to the demo model's speed and to its pictures, against the exact run, in the same run.

``python -m tests.bench.bench_acceleration`` loads the shipped model once per variant and lets all of them do the same
jobs in turn, round after round; ``--tiny`` is one small job in one round, to see that it works.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace

from shared.messages import AttentionCache, Input, JobRequest, StepCache
from tests.bench import report
from tests.engine.scripted import ROOT
from tests.support.framed import read_picture
from workers.engine import devices
from workers.engine.acceleration import compiling, quantising
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.course import Alone, Course, Silent
from workers.engine.families.base import Job
from workers.engine.families.wan import Wan
from workers.engine.opening import open_model
from workers.engine.parallel.mesh import Mesh
from workers.engine.stages import decode
from workers.pool import Pool
from workers.training.evaluate import ssim

METHOD = """
The shipped demo model, {side}×{side}×17, {steps} steps, no guidance, in float32 on {threads} thread(s), {jobs} job(s):
a held-out photo and a prompt each. In each of {rounds} rounds every variant does every job, the exact run first;
"speed" is the exact run's denoising seconds over the variant's in the same round: median, smallest and largest.
Pictures are compared before they become an mp4, over the whole clip: PSNR (∞: the same bytes) and SSIM, means over the
jobs. Compilation happens before the rounds and is not counted.

This is a small model: {tokens} tokens of width {width}. What a step costs besides the accelerated part weighs more here
than at 14 B, and a model that was trained for few steps changes more from one step to the next.
`python -m tests.bench.bench_engine --accelerator` measures the sizes of real checkpoints.
"""
_JOBS = (("cat", "pan left"), ("coffee", "zoom in"), ("raccoon", "rotate left"), ("rocket", "pan up"))


class Variant(Struct, frozen=True):
    """A pool's and a job's settings, by the name in the table."""

    name: str
    pool: dict[str, Any] = {}
    cache: AttentionCache | None = None
    step_cache: StepCache | None = None


class Run(Struct, frozen=True):
    """One variant's job: seconds of denoising, frames [3, t, H, W] in 0..255, what it says that it used."""

    seconds: float
    frames: torch.Tensor
    reused: int


def variants(steps: int) -> list[Variant]:
    """All that this machine can do; the exact one first."""

    def at(share: float) -> int:
        return round(share * steps)

    published = AttentionCache(start_step=at(0.3), interval=4, end_step=at(0.925))
    dense = AttentionCache(start_step=at(0.1), interval=2, end_step=steps - 1)
    found = [Variant("exact"), Variant("the same again")]
    found.append(Variant(f"attention cache {_cache_words(published)} (as published for 40 steps)", cache=published))
    found.append(Variant(f"attention cache {_cache_words(dense)}", cache=dense))
    for threshold in (0.05, 0.1, 0.2):
        found.append(Variant(f"step cache, threshold {threshold:g}", step_cache=StepCache(threshold=threshold)))
    found.append(Variant("attention = sdpa-math", {"attention": "sdpa-math"}))
    found.append(Variant("fuse_qkv", {"fuse_qkv": True}))
    if not compiling.missing("cpu"):
        found.append(Variant("compile", {"compile": True}))
    if not quantising.missing("int8", devices.open_device("cpu")):
        found.append(Variant("quant = int8", {"quant": "int8"}))
    found.append(Variant("offload = model", {"offload": "model"}))
    found.append(Variant("dtype = bfloat16", {"dtype": "bfloat16"}))
    return found


def _cache_words(cache: AttentionCache) -> str:
    return f"{cache.start_step}/{cache.interval}/{cache.end_step}"


def jobs(model: Wan, side: int, steps: int, count: int) -> list[Job]:
    """The jobs, exact."""
    made = []
    for photo, prompt in _JOBS[:count]:
        path = ROOT / "workers" / "training" / "photos" / "heldout" / f"{photo}.jpg"
        request = JobRequest(
            model="wan-demo",
            task="image-to-video",
            prompt=prompt,
            width=side,
            height=side,
            num_frames=17,
            fps=8,
            steps=steps,
            guidance_scale=1.0,
            shift=model.card.shift.default,
            solver=model.card.solvers[0],
            seed=1,
            image=Input(key=photo, media_type="image/jpeg", size=path.stat().st_size, sha256=""),
        )
        made.append(Job(request, model.layouts[0], {"image": read_picture(path, side, side)}, None))
    return made


def do(model: Wan, job: Job, variant: Variant) -> Run:
    """That job with that variant's caches."""
    request = replace(job.request, cache=variant.cache, step_cache=variant.step_cache)
    course = Course(Alone(), Silent(), devices.open_device("cpu").is_out_of_memory)
    conditions = model.conditions(job, model.texts(request, course), course)
    cache = Cache(request.cache, request.steps)
    place = model.prepare(job.layout, cache, request)
    state = model.start(request, request.seed, conditions)
    began = time.perf_counter()
    for after in model.denoising(request, state, conditions, place, course):
        state = after
    seconds = time.perf_counter() - began
    skipped = model._skipped()
    cache.clear()
    frames = [
        frame for chunk in decode.frames(model._vae, conditions.given.end(state.latents), None) for frame in chunk
    ]
    stacked = torch.stack([torch.from_numpy(frame) for frame in frames]).permute(3, 0, 1, 2).float()
    blocks = len(model._transformers[0].blocks)
    return Run(seconds, stacked, skipped or cache.reused // blocks)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """In dB, of values in 0..255."""
    error = float(((one - other) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main() -> None:
    """Measure and write ``docs/benchmarks/acceleration.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="only see that it works; writes nothing")
    given = parser.parse_args()
    if given.tiny:
        given.rounds, given.steps, given.side, given.jobs = 1, 4, 64, 1
    tried = variants(given.steps)
    models = []
    for variant in tried:
        pool = Pool(model="wan-demo", device="cpu", **variant.pool)
        opened = open_model(pool, devices.open_device("cpu"), Mesh("cpu", 1))
        assert isinstance(opened, Wan)
        opened.warm_up()
        models.append(opened)
    todo = jobs(models[0], given.side, given.steps, given.jobs)
    for model, variant in zip(models, tried, strict=True):
        do(model, todo[0], variant)
    runs: list[list[list[Run]]] = [
        [[do(model, job, variant) for model, variant in zip(models, tried, strict=True)] for job in todo]
        for _ in range(given.rounds)
    ]
    rows = []
    for index, variant in enumerate(tried):
        speeds = [sum(each[0].seconds for each in turn) / sum(each[index].seconds for each in turn) for turn in runs]
        pairs = [(each[0].frames, each[index].frames) for each in runs[0]]
        likeness = statistics.mean(psnr(*pair) for pair in pairs)
        alike = statistics.mean(ssim(*(frames / 127.5 - 1 for frames in pair)) for pair in pairs)
        reused = statistics.mean(each[index].reused for each in runs[0])
        seconds = statistics.median(sum(each[index].seconds for each in turn) for turn in runs)
        per_step = seconds / len(todo) / given.steps
        middle, low, high = report.spread(speeds)
        rows.append(
            (
                variant.name,
                f"{1000 * per_step:.0f}",
                f"{middle:.2f} ({low:.2f}–{high:.2f})",
                f"{reused:g} of {given.steps}" if variant.cache or variant.step_cache else "",
                "∞" if math.isinf(likeness) else f"{likeness:.1f}",
                f"{alike:.4f}",
            )
        )
    head = ("variant", "ms per step", "speed, exact = 1", "steps that reuse", "PSNR dB", "SSIM")
    body = report.table(head, rows)
    if given.tiny:
        print(body)
        return
    config = models[0]._checkpoint.transformer
    method = METHOD.format(
        side=given.side,
        steps=given.steps,
        rounds=given.rounds,
        jobs=len(todo),
        threads=torch.get_num_threads(),
        tokens=5 * (given.side // 16) ** 2,
        width=config.num_attention_heads * config.attention_head_dim,
    )
    report.write("acceleration", "What each accelerator does", method, body)


if __name__ == "__main__":
    main()
