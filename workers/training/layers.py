"""Clips in which not everything moves alike: a thing that crosses a still picture, and a pan with parallax.

A thing is one of the scenes' shapes in one of their colours, laid over the picture. Parallax takes the picture for a
plain that the camera looks over: the bottom row is nearest and moves three times as fast as the top one.
"""

import random
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training import clips, scenes
from workers.training.captions import MOTIONS, RATES
from workers.training.meaning import COURSES, STILL, Meaning
from workers.training.scenes import COLOURS

THING_PX: Final = 2.5
"""How far a thing moves from frame to frame."""
FAR: Final = 0.5
NEAR: Final = 1.5
"""What a pan's speed is multiplied by in the top and in the bottom row."""
PANS: Final = tuple(motion for motion in MOTIONS if motion.name.startswith("pan_"))


@dataclass(frozen=True)
class Shift:
    """Where each pixel's picture is in the first frame, less where it is now, in px: [b, frames, side, side] each."""

    across: Tensor
    down: Tensor


def draw_layered(rng: random.Random) -> Meaning:
    """What a clip of this kind shows: as often a moving thing as parallax."""
    speed = rng.choice(tuple(RATES))
    if rng.random() < 0.5:
        return Meaning(motion=rng.choice(PANS), speed=speed, parallax=True)
    thing = (rng.choice(scenes.SHAPES), rng.choice(tuple(COLOURS)))
    return Meaning(motion=STILL, speed=speed, course=rng.choice(tuple(COURSES)), thing=thing)


def parallax_shift(meaning: Meaning, frames: Tensor, side: int) -> Shift:
    """The shift of one clip of a pan with parallax at the frame numbers `frames` [t]."""
    assert meaning.motion is not None
    near = torch.linspace(FAR, NEAR, side).view(1, 1, -1, 1)
    travelled = clips.PAN_PX * RATES[meaning.speed] * frames.to(torch.float32).view(1, -1, 1, 1)
    across, down = (meaning.motion.direction[axis] * travelled * near for axis in (0, 1))
    return Shift(across.expand(1, -1, -1, side), down.expand(1, -1, -1, side))


def film(meaning: Meaning, picture: Tensor, frames: Tensor, rng: random.Random) -> tuple[Tensor, Shift]:
    """One clip [1, 3, t, side, side] in [-1, 1] over `picture` [3, S, S] in [0, 1], of which the frame is the middle
    two thirds, and its shift. `rng` places and sizes the thing."""
    side = picture.shape[-1] * 2 // 3
    if meaning.parallax:
        shift = parallax_shift(meaning, frames, side)
        return _sample(picture, shift, side), shift
    assert meaning.course is not None
    return _film_thing(meaning, meaning.course, picture, frames, rng)


def film_thing(meaning: Meaning, picture: Tensor, rng: random.Random, course: str) -> Tensor:
    """The clip [3, 17, side, side] of the thing going on `course` from where `film` would have had it start."""
    return _film_thing(meaning, course, picture, torch.arange(17), rng)[0][0]


def _film_thing(
    meaning: Meaning, course: str, picture: Tensor, frames: Tensor, rng: random.Random
) -> tuple[Tensor, Shift]:
    assert meaning.thing is not None
    side = picture.shape[-1] * 2 // 3
    name, colour = meaning.thing
    still = torch.zeros(1, len(frames), side, side)
    behind = (_sample(picture, Shift(still[:, :1], still[:, :1]), side)[0, :, 0] + 1) / 2
    size = rng.uniform(0.2, 0.36)
    # It starts on the side that it leaves, so that it is in the frame to the end.
    away = COURSES[meaning.course or course]
    start = (rng.uniform(-0.25, 0.25) - 0.3 * away[0], rng.uniform(-0.25, 0.25) - 0.3 * away[1])
    column, row = COURSES[course]
    shots, across, down = [], still.clone(), still.clone()
    for number, frame in enumerate(frames.tolist()):
        travelled = THING_PX * RATES[meaning.speed] * frame
        centre = (start[0] + 2 * column * travelled / side, start[1] + 2 * row * travelled / side)
        cover, paint = scenes.cut_out(name, colour, size, centre, side)
        shots.append((behind + (paint - behind) * cover) * 2 - 1)
        across[0, number][cover > 0.5] = -column * travelled
        down[0, number][cover > 0.5] = -row * travelled
    return torch.stack(shots, 1)[None], Shift(across, down)


def _sample(picture: Tensor, shift: Shift, side: int) -> Tensor:
    full = picture.shape[-1]
    axis = torch.arange(side) + 0.5 - side / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x + shift.across[0], y + shift.down[0]], -1) * 2 / full
    tall = grid.reshape(1, -1, side, 2)
    shot = F.grid_sample(picture[None], tall, padding_mode="reflection", align_corners=False)
    return shot.view(1, 3, -1, side, side) * 2 - 1
