"""What fewer steps and the caches cost: the same clips in other numbers of steps, and with what is skipped skipped."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from shared.messages import AttentionCache, StepCache
from workers.training import captions, clips, codec, evaluate
from workers.training.sampling import Made, Sampler

_MOTIONS: Final = ("pan_left", "pan_down", "zoom_in", "rotate_right", "fade")
_CACHED_STEPS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to sample; `beside` is the way that its time and its pictures are compared with."""

    name: str
    steps: int
    cache: AttentionCache | None = None
    step_cache: StepCache | None = None


def ways(steps: Sequence[int], *, caches: bool) -> list[Way]:
    """The numbers of steps, exact, and the caches in eight steps."""
    found = [Way(name="exact", steps=count) for count in steps]
    if not caches:
        return found
    if _CACHED_STEPS not in steps:
        found.append(Way(name="exact", steps=_CACHED_STEPS))
    for start, interval, end in ((1, 2, 7), (2, 4, 7), (1, 6, 7)):
        cache = AttentionCache(start_step=start, interval=interval, end_step=end)
        found.append(Way(name=f"attention cache {start}/{interval}/{end}", steps=_CACHED_STEPS, cache=cache))
    for threshold in (0.05, 0.1, 0.2):
        name = f"step cache, threshold {threshold:g}"
        found.append(Way(name=name, steps=_CACHED_STEPS, step_cache=StepCache(threshold=threshold)))
    return found


def sweep(sampler: Sampler, tried: Sequence[Way], photos: Sequence[str], *, side: int) -> str:
    """A markdown table: what each way makes of the photos, beside the true clips and beside eight exact steps."""
    asked = [(photo, captions.BY_NAME[name]) for photo in photos for name in _MOTIONS]
    truths = {
        photo: evaluate.true_clips(clips.load_photo(clips.photos("heldout")[photo], side * 3 // 2), "normal", side)
        for photo in photos
    }

    def make(way: Way, photo: str, motion: captions.Motion) -> Made:
        first = truths[photo][captions.MOTIONS.index(motion), :, 0]
        prompt = captions.plain_prompt(motion, "normal")
        return sampler.make(
            prompt, first, side=side, steps=way.steps, seed=1, cache=way.cache, step_cache=way.step_cache
        )

    made = [[make(way, *one) for way in tried] for one in asked]
    reference = next(index for index, way in enumerate(tried) if way.steps == _CACHED_STEPS and way.name == "exact")
    head = "| way | steps | denoising, 8 exact steps = 1 | steps that reuse | followed | dB to the truth"
    rows = [f"{head} | first frame dB | dB to 8 exact steps |", "|---|---|---|---|---|---|---|---|"]
    for index, way in enumerate(tried):
        ratio = statistics.median(row[index].seconds / row[reference].seconds for row in made)
        followed, true, first, alike = 0, [], [], []
        for (photo, motion), row in zip(asked, made, strict=True):
            clip, number = row[index].clip, captions.MOTIONS.index(motion)
            followed += _nearest(clip, truths[photo]) == number
            true.append(_psnr(clip, truths[photo][number]))
            first.append(_psnr(clip[:, :1], truths[photo][number, :, :1]))
            alike.append(_psnr(clip, row[reference].clip))
        reused = statistics.mean(row[index].reused for row in made)
        cached = way.cache is not None or way.step_cache is not None
        rows.append(
            f"| {way.name} | {way.steps} | {ratio:.2f} | {f'{reused:g}' if cached else ''} | {followed}/{len(asked)} | "
            f"{statistics.mean(true):.1f} | {statistics.mean(first):.1f} | "
            f"{'' if index == reference else f'{statistics.mean(alike):.1f}'} |"
        )
    return "\n".join(rows)


def _nearest(clip: Tensor, truths: Tensor) -> int:
    return int((clip[None, :, 4:] - truths[:, :, 4:]).square().mean((1, 2, 3, 4)).argmin())


def _psnr(one: Tensor, other: Tensor) -> float:
    return float(codec.psnr(one[None], other[None]).mean())


def seconds(sampler: Sampler, *, side: int, steps: int, tries: int) -> list[float]:
    """How long the denoising of one clip took, each time: the smallest says most on a machine that is not idle."""
    photo = torch.zeros(3, side, side)
    return [sampler.make("pan left", photo, side=side, steps=steps).seconds for _ in range(tries)]
