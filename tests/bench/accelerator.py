"""The engine at real sizes on an accelerator: seconds per step beside the bound and beside diffusers' own pipeline,
what each setting changes, decoding, the text encoder, memory. ``bench_engine --accelerator`` runs it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from shared.messages import AttentionCache, JobRequest, Reason, StepCache
from tests.bench import accelerator_parts, random_wan, report
from tests.bench.accelerator_parts import Video
from tests.bench.random_wan import Sizes
from workers.engine.acceleration import compiling, cost, projections, quantising
from workers.engine.acceleration.attention_cache import Cache, reused_steps
from workers.engine.course import Alone, Course, Silent
from workers.engine.devices.base import Device
from workers.engine.errors import AgreedFailure
from workers.engine.families.base import Job
from workers.engine.families.wan import Wan
from workers.engine.loading import Components
from workers.engine.stages import denoise
from workers.pool import Pool

METHOD = """
Random weights of the sizes of Wan 2.1 T2V 14B, umT5-XXL and Wan's VAE, on one {device}, bfloat16 (VAE float32), with
guidance: two forwards per step. "s/step" is the median of {steps} steps after {skipped} that are not counted, the
device synchronised after each; "bound" is the formula's operations (`workers/engine/acceleration/cost.py`) at
{tflops:g} TFLOP/s. diffusers {diffusers}'s own `WanPipeline` ran the same weights, sizes and prompt embeddings in the
same process before the engine's parts were put in. "deviation" is the relative difference (root mean square) of one
forward's output from the first row's. Peak memory counts what is allocated at once, weights included. A matrix product
of {side}² by {side}² ran at {matmul:.0f} TFLOP/s.
"""
PUBLISHED = AttentionCache(start_step=12, interval=4, end_step=37)
PUBLISHED_STEPS = 40
_SIDE = 8192


class Plan(Struct, frozen=True):
    """How much is measured: sizes in pixels with frames, steps that count, steps that do not, the bound's TFLOP/s."""

    videos: tuple[Video, ...]
    steps: int
    skipped: int
    tflops: float


REAL = Plan(((832, 480, 81), (1280, 720, 81)), steps=3, skipped=1, tflops=790.0)
TINY = Plan(((64, 64, 5), (96, 64, 5)), steps=2, skipped=1, tflops=0.01)


def video(words: str) -> Video:
    """``832x480x81`` as numbers."""
    width, height, frames = map(int, words.split("x"))
    return width, height, frames


def request_for(video: Video) -> JobRequest:
    """A job of that size."""
    width, height, frames = video
    return JobRequest(
        model="random",
        task="text-to-video",
        prompt="pan left",
        negative_prompt="zoom in",
        width=width,
        height=height,
        num_frames=frames,
        fps=16,
        steps=PUBLISHED_STEPS,
        guidance_scale=5.0,
        shift=5.0,
        solver="unipc",
        seed=1,
    )


def measure(sizes: Sizes, plan: Plan, device: Device, dtype: torch.dtype) -> str:
    """All tables, as Markdown."""
    parts = random_wan.components(sizes, device, dtype)
    embeddings = torch.randn(2, 1, 512, sizes.dit.text_width, device=device.torch_device, dtype=dtype)
    theirs = {video: _diffusers_step(parts, embeddings, video, plan, device) for video in plan.videos}
    model = random_wan.family(sizes, parts, Pool(model="random", device=device.kind), device)
    tables = [accelerator_parts.text_encoder(model, device)]
    tables += [accelerator_parts.kernels(sizes, video, device, dtype) for video in plan.videos]
    of_steps = Steps(model, plan, device)
    of_steps.plain()
    of_steps.caches()
    of_steps.weights()
    for video in plan.videos:
        tables.append(_table(video, cost.forward(sizes.dit, _work(video)), plan, theirs[video], of_steps.rows[video]))
    tables.append(accelerator_parts.decoding(model, plan.videos, device))
    return "\n\n".join(tables)


def _work(video: Video) -> cost.Work:
    return cost.Work(tokens=cost.tokens(*video))


def method(plan: Plan, device: Device) -> str:
    """How it was measured."""
    import diffusers

    return METHOD.format(
        device=device.name(),
        steps=plan.steps,
        skipped=plan.skipped,
        tflops=plan.tflops,
        diffusers=diffusers.__version__,
        side=_SIDE,
        matmul=matmul_tflops(device),
    )


def matmul_tflops(device: Device) -> float:
    """What the device does on one large matrix product in its own type."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device.torch_device, dtype=device.dtype) for _ in range(2))
    seconds = [accelerator_parts.timed(device, lambda: a @ b) for _ in range(10)]
    return 2 * _SIDE**3 / min(seconds) / 1e12


# --- steps ----------------------------------------------------------------------------------------------------------


def _diffusers_step(parts: Components, embeddings: Tensor, video: Video, plan: Plan, device: Device) -> float:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pipe: Any = WanPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        vae=parts.vae,
        scheduler=scheduler,
        transformer=parts.transformers[0],
    )
    pipe.set_progress_bar_config(disable=True)
    marks: list[float] = []

    def on_step(*_: Any) -> dict[str, Any]:
        device.synchronise()
        marks.append(time.perf_counter())
        return {}

    width, height, frames = video
    pipe(
        prompt_embeds=embeddings[0],
        negative_prompt_embeds=embeddings[1],
        width=width,
        height=height,
        num_frames=frames,
        num_inference_steps=plan.skipped + plan.steps + 1,
        guidance_scale=5.0,
        output_type="latent",
        callback_on_step_end=on_step,
    )
    return statistics.median(after - before for before, after in itertools.pairwise(marks[plan.skipped :]))


class _Variant(Struct):
    name: str
    seconds: float | None
    deviation: float | None = None
    note: str = ""


def _table(video: Video, forward: int, plan: Plan, diffusers: float, rows: list[_Variant]) -> str:
    bound = 2 * forward / (plan.tflops * 1e12)
    ours = rows[0].seconds

    def told(seconds: float | None) -> tuple[str, str, str]:
        if seconds is None:
            return "", "", ""
        return f"{seconds:.3f}", f"{ours / seconds:.2f}" if ours else "", f"{bound / seconds:.0%}"

    lines = [("the bound", *told(bound), "", ""), ("diffusers", *told(diffusers), "", "")]
    for row in rows:
        deviation = "" if row.deviation is None else f"{row.deviation:.1e}"
        lines.append((row.name, *told(row.seconds), deviation, row.note))
    width, height, frames = video
    head = (f"{width}×{height}×{frames}", "s/step", "speed, genfleet = 1", "of the bound", "deviation", "")
    return report.table(head, lines)


class Steps:
    """What a step takes, video by video, with one accelerator after the other.

    Args:
        model: of random weights, on one rank.
        plan: how much.
        device: of the model.
    """

    def __init__(self, model: Wan, plan: Plan, device: Device) -> None:
        self._model, self._plan, self._device = model, plan, device
        self._exact: dict[Video, Tensor] = {}
        self.rows: dict[Video, list[_Variant]] = {video: [] for video in plan.videos}

    def plain(self) -> None:
        """Nothing but the kernel."""
        for video in self._plan.videos:
            self._exact[video] = self._velocity(request_for(video))
        self._whole("genfleet")

    def caches(self) -> None:
        """A step that reuses, for both caches."""
        # Of 1, 2, 3, 4 the odd ones compute and store, the even ones reuse.
        short = AttentionCache(start_step=1, interval=2, end_step=4)
        reusing, share = "attention cache: a step that reuses", reused_steps(PUBLISHED, PUBLISHED_STEPS)
        for video in self._plan.videos:
            cached = replace(request_for(video), cache=short)
            row = self._tried(video, reusing, partial(self._one, cached, 2))
            whole = self.rows[video][0].seconds
            if row.seconds is not None and whole is not None:
                mean = whole + (row.seconds - whole) * share / PUBLISHED_STEPS
                name = f"attention cache 12/4/37: the mean of {PUBLISHED_STEPS} steps, of which {share} reuse"
                self.rows[video].append(_Variant(name, mean, note="from the rows above"))
            skipping = replace(request_for(video), step_cache=StepCache(threshold=1.0))
            self._tried(video, "step cache: a step that is skipped", partial(self._one, skipping, 2))

    def weights(self) -> None:
        """What changes the blocks; the last ones stay in them."""
        blocks, sequence = self._model._transformers[0].blocks, self._model._sequences[0]
        before = [[(each, each.weight, each.bias) for each in _projections(block)] for block in blocks]
        for block in blocks:
            projections.fuse(block.attn1)
        self._whole("fuse_qkv")
        for block, layers in zip(blocks, before, strict=True):
            del block.attn1.fused_weight, block.attn1.fused_bias
            for layer, weight, bias in layers:
                layer.weight, layer.bias = weight, bias
        is_compiled = not compiling.missing(self._device.kind)
        if is_compiled:
            sequence.project = compiling.compile_blocks(blocks)
            self._whole("compile")
        kind = "int8" if self._device.kind == "cpu" else "float8"
        if not quantising.missing(kind, self._device):
            quantising.quantise(blocks, kind)
            self._whole(f"quant = {kind}{' with compile' if is_compiled else ''}")

    def _whole(self, name: str) -> None:
        for video in self._plan.videos:
            request = request_for(video)
            row = self._tried(video, name, partial(self._median, request))
            if row.seconds is not None:
                exact = self._exact[video]
                row.deviation = float((self._velocity(request) - exact).norm() / exact.norm())

    def _tried(self, video: Video, name: str, do: Callable[[], float]) -> _Variant:
        device = self._device
        try:
            if device.kind != "cpu":
                torch.accelerator.reset_peak_memory_stats()
            row = _Variant(name, do(), note=accelerator_parts.peak(device))
        except (RuntimeError, AgreedFailure) as error:
            # A step that runs out of memory has agreed on it with its ranks, of which there is one.
            agreed = isinstance(error, AgreedFailure) and error.reason == Reason.OUT_OF_MEMORY
            if not agreed and not device.is_out_of_memory(error):
                raise
            self._model.forget()
            row = _Variant(name, None, note="out of memory")
        self.rows[video].append(row)
        return row

    def _median(self, request: JobRequest) -> float:
        plan = self._plan
        return statistics.median(self._seconds(request, plan.skipped + plan.steps + 1)[plan.skipped :])

    def _one(self, request: JobRequest, step: int) -> float:
        """The seconds of that one step."""
        return self._seconds(request, step + 1)[step - 1]

    def _seconds(self, request: JobRequest, count: int) -> list[float]:
        """Of so many steps all but the first."""
        marks = []
        for _ in itertools.islice(self._states(request), count):
            self._device.synchronise()
            marks.append(time.perf_counter())
        self._model.forget()
        return [after - before for before, after in itertools.pairwise(marks)]

    def _states(self, request: JobRequest) -> Iterator[denoise.DenoiseState]:
        model, conditions, job, course = self._model, *self._conditions(request)
        place = model.prepare(job.layout, Cache(request.cache, request.steps), request)
        yield from model.denoising(request, model.start(request, 1, conditions), conditions, place, course)

    def _velocity(self, request: JobRequest) -> Tensor:
        """What the transformer says of the first step's noise."""
        model, conditions, job, _ = self._model, *self._conditions(request)
        model.prepare(job.layout, Cache(None, 0))
        with torch.no_grad():
            return model._model(conditions)(model.start(request, 1, conditions).latents, 900, 0)

    def _conditions(self, request: JobRequest) -> tuple[Any, Job, Course]:
        course = Course(Alone(), Silent(), self._device.is_out_of_memory)
        job = Job(request, self._model.layouts[0], {}, None)
        return self._model.conditions(job, self._model.texts(request, course), course), job, course


def _projections(block: Any) -> tuple[Any, Any, Any]:
    return block.attn1.to_q, block.attn1.to_k, block.attn1.to_v
