"""What a prompt means, whole: the camera, the scene, and what moves by itself. The text encoder is taught to say it.

The first channels of every token hold `Meaning.code`: the camera's `CODE_WIDTH`, the scene's `SCENE_WIDTH`, then where
the thing goes (column, row, as a multiple of its normal speed) and whether near parts move faster than far ones. The
rest hold nothing.
"""

import random
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from workers.training import captions, scene_captions, scenes
from workers.training.captions import BY_NAME, CODE_WIDTH, MOTIONS, RATES, Motion
from workers.training.scenes import COLOURS, SCENE_WIDTH, Scene, scene_code

SCENE_AT: Final = CODE_WIDTH
LAYERS_AT: Final = CODE_WIDTH + SCENE_WIDTH
MEANING_WIDTH: Final = LAYERS_AT + 3
COURSES: Final = MappingProxyType({"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)})
"""Where a thing may go by itself: column, row."""
STILL: Final = BY_NAME["still"]


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """`motion` of the camera at `speed` (None: not said), over `scene` (None: over a photo). With `course` it is the
    thing that moves at `speed`: the scene's, or the `thing` of that colour in the photo. `parallax` goes with a pan."""

    motion: Motion | None = None
    speed: str = "normal"
    scene: Scene | None = None
    course: str | None = None
    thing: tuple[str, str] | None = None
    parallax: bool = False

    @property
    def code(self) -> tuple[float, ...]:
        scene = scene_code(self.scene)
        if self.thing is not None:
            # Shape and colour alone, so that it can be found in the photo; nothing is to be painted.
            name, colour = self.thing
            whole = scene_code(Scene(backdrop="white", thing=name, colour=colour))
            scene = (0.0,) * 10 + whole[10:21] + (0.0,) * (SCENE_WIDTH - 21)
        column, row = (0.0, 0.0) if self.course is None else COURSES[self.course]
        rate = RATES[self.speed]
        camera = captions.camera_code(self.motion, self.speed)
        return (*camera, *scene, rate * column, rate * row, float(self.parallax))


def draw_meaning(rng: random.Random) -> Meaning:
    """What one of the captions that the text encoder is taught on is to mean."""
    speed, fate = rng.choice(tuple(RATES)), rng.random()
    if fate < 0.34:
        return Meaning(motion=rng.choice(MOTIONS), speed=speed)
    if fate < 0.74:
        motion = STILL if rng.random() < 0.4 else rng.choice(MOTIONS)
        return Meaning(motion=motion, speed=speed, scene=scene_captions.draw_scene(rng))
    if fate < 0.82:
        scene = scene_captions.draw_scene(rng)
        if scene.thing is not None:
            return Meaning(motion=STILL, speed=speed, scene=scene, course=rng.choice(tuple(COURSES)))
        return Meaning(motion=STILL, scene=scene)
    if fate < 0.9:
        thing = (rng.choice(scenes.SHAPES), rng.choice(tuple(COLOURS)))
        return Meaning(motion=STILL, speed=speed, course=rng.choice(tuple(COURSES)), thing=thing)
    if fate < 0.94:
        pans = [motion for motion in MOTIONS if motion.name.startswith("pan_")]
        return Meaning(motion=rng.choice(pans), speed=speed, parallax=True)
    return Meaning()


def say(meaning: Meaning, rng: random.Random, *, language: str | None = None) -> str:
    """One wording of `meaning`. A camera that holds still over a scene need not be mentioned."""
    if language is None:
        language = rng.choice(("en", "zh"))
    motion, speed = meaning.motion, meaning.speed
    if meaning.course is not None:
        return scene_captions.moving_caption(
            meaning.scene, meaning.thing, meaning.course, speed, rng, language=language
        )
    if meaning.parallax:
        assert motion is not None
        return scene_captions.parallax_caption(motion, speed, rng, language=language)
    if meaning.scene is not None:
        said = None if motion is STILL and rng.random() < 0.8 else motion
        return scene_captions.scene_caption(meaning.scene, said, speed, rng, language=language)
    if motion is not None:
        if rng.random() < 0.15:
            return captions.plain_prompt(motion, speed, language)
        return captions.caption(motion, speed, rng, language=language)
    return captions.bare_subject(rng, language) if rng.random() < 0.7 else ""


def plain(meaning: Meaning, language: str = "en") -> str:
    """The wording of a scene with or without a moving camera that the fixed examination uses."""
    assert meaning.scene is not None
    return scene_captions.plain_scene(meaning.scene, None if meaning.motion is STILL else meaning.motion, language)


def with_scene(meaning: Meaning, **changes: str) -> Meaning:
    """The same meaning with another colour, thing, size, place or backdrop."""
    assert meaning.scene is not None
    return replace(meaning, scene=replace(meaning.scene, **changes))
