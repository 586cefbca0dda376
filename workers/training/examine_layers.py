"""The examination of what the camera does not move alike: a thing in a held-out photo that goes by itself, and pans
with parallax. A clip follows when, of the true clips of all that the prompt might have asked for, its own is the
nearest: another course or none; another pan, or the pan without parallax."""

import random
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from workers.training import captions, clips, codec, layers, meaning
from workers.training.material import FRAMES
from workers.training.meaning import COURSES, STILL, Meaning
from workers.training.sampling import Sampler

_THINGS: Final = (("ball", "red"), ("star", "yellow"), ("box", "blue"), ("heart", "pink"))


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """One clip: its kind ("thing" or "parallax"), whether it was followed, and PSNR in dB beside a still picture's."""

    kind: str
    prompt: str
    followed: bool
    psnr: float
    static_psnr: float


def asked_of(number: int) -> list[Meaning]:
    """What is asked of photo `number`: one thing on every course, and parallax in four directions."""
    thing = _THINGS[number % len(_THINGS)]
    moving = [Meaning(motion=STILL, course=course, thing=thing) for course in COURSES]
    pans = [captions.BY_NAME[f"pan_{name}"] for name in COURSES]
    return moving + [Meaning(motion=pan, parallax=True) for pan in pans]


def _film(each: Meaning, photo: Tensor, side: int, seed: int) -> Tensor:
    """The true clip [3, 17, side, side]; the same seed puts the thing in the same place."""
    numbers = torch.arange(FRAMES)
    if each.thing is not None or each.parallax:
        return layers.film(each, photo, numbers, random.Random(seed))[0][0]
    assert each.motion is not None
    path = clips.camera_path([each.motion], [each.speed], numbers)
    return clips.film(photo[None], path, side, torch.ones(1), torch.zeros(1, 2))[0]


def examine(sampler: Sampler, photo: str, number: int, *, side: int, steps: int) -> list[LayerScore]:
    """All that is asked of one held-out photo."""
    picture = clips.load_photo(clips.photos("heldout")[photo], side * 3 // 2)
    scores = []
    for index, asked in enumerate(asked_of(number)):
        # A thing starts away from where it goes: all courses are compared from this one's start.
        true = _film(asked, picture, side, index)
        if asked.parallax:
            others = [each for each in asked_of(number) if each.parallax]
            candidates = [_film(each, picture, side, index) for each in others]
            candidates += [_film(replace(each, parallax=False), picture, side, index) for each in others]
            right = others.index(asked)
        else:
            candidates = [layers.film_thing(asked, picture, random.Random(index), course) for course in COURSES]
            right = list(COURSES).index(asked.course or "")
        candidates.append(true[:, :1].expand(-1, FRAMES, -1, -1))
        prompt = meaning.say(asked, random.Random(0), language="en")
        made = sampler.make(prompt, true[:, 0], side=side, steps=steps, seed=index).clip
        distance = (made[None, :, 4:] - torch.stack(candidates)[:, :, 4:]).square().mean((1, 2, 3, 4))
        scores.append(
            LayerScore(
                kind="parallax" if asked.parallax else "thing",
                prompt=prompt,
                followed=int(distance.argmin()) == right,
                psnr=float(codec.psnr(made[None], true[None])),
                static_psnr=float(codec.psnr(candidates[-1][None], true[None])),
            )
        )
    return scores


def summary(scores: list[LayerScore]) -> str:
    """A line for each kind."""
    lines = [f"{'kind':10}{'followed':>9}{'chance':>8}{'PSNR':>7}{'still':>7}"]
    for kind, chance in (("thing", 5), ("parallax", 9)):
        part = [score for score in scores if score.kind == kind]
        followed = f"{sum(score.followed for score in part)}/{len(part)}"
        levels = [sum(getattr(score, field) for score in part) / len(part) for field in ("psnr", "static_psnr")]
        lines.append(f"{kind:10}{followed:>9}{f'{100 / chance:.0f} %':>8}{levels[0]:7.1f}{levels[1]:7.1f}")
    return "\n".join(lines)
