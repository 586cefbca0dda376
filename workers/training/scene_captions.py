"""How people ask for a scene, alone or with a camera motion, in English and in Chinese."""

import random
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from workers.training import captions, scenes
from workers.training.captions import Motion
from workers.training.scenes import COLOURS, LANDSCAPES, Scene

_ENGLISH_THINGS: Final = MappingProxyType(
    {
        "ball": ("ball", "sphere", "circle"),
        "box": ("box", "square", "cube"),
        "triangle": ("triangle", "pyramid"),
        "star": ("star",),
        "heart": ("heart",),
        "ring": ("ring",),
        "house": ("house", "hut"),
        "tree": ("tree",),
        "sun": ("sun",),
        "moon": ("moon",),
    }
)
_CHINESE_THINGS: Final = MappingProxyType(
    {
        "ball": ("球", "圆球"),
        "box": ("方块", "正方形"),
        "triangle": ("三角形",),
        "star": ("星星", "五角星"),
        "heart": ("爱心", "心形"),
        "ring": ("圆环",),
        "house": ("房子", "小屋"),
        "tree": ("树",),
        "sun": ("太阳",),
        "moon": ("月亮",),
    }
)
_CHINESE_COLOURS: Final = MappingProxyType(
    dict(
        zip(
            COLOURS,
            ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "棕色", "黑色", "白色", "灰色"),
            strict=True,
        )
    )
)
_ENGLISH_LANDSCAPES: Final = MappingProxyType(
    {
        "meadow": ("on a meadow", "on a green meadow", "in the grass under a blue sky"),
        "desert": ("in the desert", "in a sandy desert"),
        "sea": ("by the sea", "over the sea", "on the ocean"),
        "snow": ("in the snow", "on a snowy plain"),
        "night": ("at night", "under the night sky"),
        "sunset": ("at sunset", "before a sunset"),
    }
)
_CHINESE_LANDSCAPES: Final = MappingProxyType(
    {
        "meadow": ("草原上", "绿色的草原上"),
        "desert": ("沙漠里", "沙漠中"),
        "sea": ("海上", "大海上", "海边"),
        "snow": ("雪地里", "雪地上"),
        "night": ("夜空下", "夜晚"),
        "sunset": ("夕阳下", "日落时"),
    }
)
_ENGLISH_COLOURED: Final = ("on a {c} background", "on {c}", "before a {c} wall", "against a {c} background")
_CHINESE_COLOURED: Final = ("{c}背景上", "{c}的背景前", "{c}的墙前")
_ENGLISH_SIZES: Final = MappingProxyType({"small": ("small", "tiny"), "normal": ("",), "large": ("large", "big")})
_CHINESE_SIZES: Final = MappingProxyType({"small": ("小",), "normal": ("",), "large": ("大",)})
_ENGLISH_PLACES: Final = MappingProxyType(
    {
        "left": ("on the left", "on the left side"),
        "centre": ("", "in the middle"),
        "right": ("on the right", "on the right side"),
    }
)
_CHINESE_PLACES: Final = MappingProxyType({"left": ("左边", "左侧"), "centre": ("", "中间"), "right": ("右边", "右侧")})
_ENGLISH_COURSES: Final = (
    "moves {d}",
    "moving {d}",
    "moves to the {d}",
    "goes {d}",
    "slides {d}",
    "travels {d}",
    "drifts {d}",
)
_CHINESE_COURSES: Final = ("向{d}移动", "往{d}走", "向{d}滑动", "朝{d}移动", "向{d}飘")
_CHINESE_DIRECTIONS: Final = MappingProxyType({"left": "左", "right": "右", "up": "上", "down": "下"})
_ENGLISH_PARALLAX: Final = ("{m} with parallax", "{m} with depth", "{m}, near things move faster", "parallax {m}")
_CHINESE_PARALLAX: Final = ("{m}，带视差", "有视差地{m}", "{m}，近处移动更快", "视差{m}")
_OWN_COLOUR: Final = MappingProxyType({"sun": "yellow", "moon": "white", "tree": "green"})
"""What colour a thing has that is named without one; the others are red."""
_OWN_BACKDROP: Final = MappingProxyType({"sun": "sea", "moon": "night"})
_ENGLISH_FRAMES: Final = ("{s}, {m}", "{m}, {s}", "{s}; {m}", "a video of {s}, {m}", "{s} and {m}")
_CHINESE_FRAMES: Final = ("{s}，{m}", "{m}，{s}", "{s}的视频，{m}")


def default_colour(thing: str) -> str:
    """What a thing is painted in that is named without a colour."""
    return _OWN_COLOUR.get(thing, "red")


def default_backdrop(thing: str, colour: str) -> str:
    """What is behind a thing that is named without a backdrop."""
    if thing in _OWN_BACKDROP:
        return _OWN_BACKDROP[thing]
    return "black" if colour == "white" else "white"


def draw_scene(rng: random.Random) -> Scene:
    """A random scene that training may show, one in eight before what need not be named."""
    scene = scenes.draw_scene(rng)
    if scene.thing is None or rng.random() > 1 / 8:
        return scene
    usual = replace(scene, backdrop=default_backdrop(scene.thing, scene.colour))
    return usual if scenes.may_train(usual) and scenes.stands_out(usual) else scene


def describe(scene: Scene, rng: random.Random, *, language: str | None = None) -> str:
    """One wording of `scene`; `language` is "en", "zh" or drawn."""
    english = rng.random() < 0.5 if language is None else language == "en"
    bare = scene.thing is not None and scene.colour == default_colour(scene.thing) and rng.random() < 0.3
    return _english(scene, rng, bare=bare) if english else _chinese(scene, rng, bare=bare)


def _english(scene: Scene, rng: random.Random, *, bare: bool) -> str:
    if scene.backdrop in LANDSCAPES:
        behind = rng.choice(_ENGLISH_LANDSCAPES[scene.backdrop])
    else:
        name = "gray" if scene.backdrop == "grey" and rng.random() < 0.3 else scene.backdrop
        behind = rng.choice(_ENGLISH_COLOURED).format(c=name)
    if scene.thing is None:
        return f"nothing {behind}" if rng.random() < 0.5 else f"an empty scene {behind}"
    if _goes_without_saying(scene, rng):
        behind = ""
    colour = "" if bare else ("gray" if scene.colour == "grey" and rng.random() < 0.3 else scene.colour)
    what = (rng.choice(_ENGLISH_SIZES[scene.size]), colour, rng.choice(_ENGLISH_THINGS[scene.thing]))
    article = rng.choice(("a", "the"))
    where = rng.choice(_ENGLISH_PLACES[scene.place])
    parts = [article, *what, *((behind, where) if rng.random() < 0.5 else (where, behind))]
    return " ".join(part for part in parts if part)


def _chinese(scene: Scene, rng: random.Random, *, bare: bool) -> str:
    if scene.backdrop in LANDSCAPES:
        behind = rng.choice(_CHINESE_LANDSCAPES[scene.backdrop])
    else:
        behind = rng.choice(_CHINESE_COLOURED).format(c=_CHINESE_COLOURS[scene.backdrop])
    if scene.thing is None:
        return f"{behind}什么都没有"
    if _goes_without_saying(scene, rng):
        behind = ""
    colour = "" if bare else _CHINESE_COLOURS[scene.colour] + rng.choice(("", "的"))
    what = rng.choice(_CHINESE_SIZES[scene.size]) + colour + rng.choice(_CHINESE_THINGS[scene.thing])
    where = rng.choice(_CHINESE_PLACES[scene.place])
    if behind + where and rng.random() < 0.5:
        return f"{behind}{where}有一个{what}"
    return "，".join(part for part in (f"一个{what}", where, behind) if part)


def _goes_without_saying(scene: Scene, rng: random.Random) -> bool:
    assert scene.thing is not None
    return scene.backdrop == default_backdrop(scene.thing, scene.colour) and rng.random() < 0.6


def scene_caption(
    scene: Scene, motion: Motion | None, speed: str, rng: random.Random, *, language: str | None = None
) -> str:
    """One wording of `scene` filmed with `motion`; without a motion, of the scene alone."""
    if language is None:
        language = rng.choice(("en", "zh"))
    said = describe(scene, rng, language=language)
    if motion is not None:
        frames = _ENGLISH_FRAMES if language == "en" else _CHINESE_FRAMES
        said = rng.choice(frames).format(s=said, m=captions.phrase(motion, speed, rng, language))
    return said.capitalize() if rng.random() < 0.3 else said


def moving_caption(
    scene: Scene | None,
    thing: tuple[str, str] | None,
    course: str,
    speed: str,
    rng: random.Random,
    *,
    language: str,
) -> str:
    """One wording of a thing that moves by itself: that of `scene`, or the `thing` (name, colour) of a photo."""
    english = language == "en"
    adverb = captions.speed_word(speed, rng, language)
    if english:
        goes = rng.choice(_ENGLISH_COURSES).format(d=course)
        goes = f"{goes} {adverb}".strip()
    else:
        goes = adverb + rng.choice(_CHINESE_COURSES).format(d=_CHINESE_DIRECTIONS[course])
    if scene is not None:
        said = describe(scene, rng, language=language)
        return f"{said}, it {goes}" if english else f"{said}，它{goes}"
    assert thing is not None
    name, colour = thing
    if english:
        return f"the {colour} {rng.choice(_ENGLISH_THINGS[name])} {goes}"
    return f"{_CHINESE_COLOURS[colour]}{rng.choice(('', '的'))}{rng.choice(_CHINESE_THINGS[name])}{goes}"


def parallax_caption(motion: Motion, speed: str, rng: random.Random, *, language: str) -> str:
    """One wording of a pan in which near parts move faster."""
    frames = _ENGLISH_PARALLAX if language == "en" else _CHINESE_PARALLAX
    return rng.choice(frames).format(m=captions.phrase(motion, speed, rng, language))


def plain_scene(scene: Scene, motion: Motion | None = None, language: str = "en") -> str:
    """The wording that the fixed examination uses: the first of every list, everything named."""
    if language == "en":
        where = _ENGLISH_PLACES[scene.place][0]
        behind = (
            _ENGLISH_LANDSCAPES[scene.backdrop][0]
            if scene.backdrop in LANDSCAPES
            else _ENGLISH_COLOURED[0].format(c=scene.backdrop)
        )
        if scene.thing is None:
            said = f"nothing {behind}"
        else:
            parts = ("a", _ENGLISH_SIZES[scene.size][0], scene.colour, _ENGLISH_THINGS[scene.thing][0], where, behind)
            said = " ".join(part for part in parts if part)
        return said if motion is None else f"{said}, {captions.plain_prompt(motion, 'normal')}"
    behind = (
        _CHINESE_LANDSCAPES[scene.backdrop][0]
        if scene.backdrop in LANDSCAPES
        else _CHINESE_COLOURED[0].format(c=_CHINESE_COLOURS[scene.backdrop])
    )
    if scene.thing is None:
        said = f"{behind}什么都没有"
    else:
        what = _CHINESE_SIZES[scene.size][0] + _CHINESE_COLOURS[scene.colour] + "的" + _CHINESE_THINGS[scene.thing][0]
        said = f"{behind}{_CHINESE_PLACES[scene.place][0]}有一个{what}"
    return said if motion is None else f"{said}，{captions.plain_prompt(motion, 'normal', 'zh')}"


def vocabulary() -> list[str]:
    """Every word and every Chinese character that scenes are described with, sorted."""
    tables = (_ENGLISH_THINGS, _ENGLISH_LANDSCAPES, _ENGLISH_SIZES, _ENGLISH_PLACES)
    english = [said for table in tables for several in table.values() for said in several]
    english += [*COLOURS, "gray", *_ENGLISH_COLOURED, *_ENGLISH_FRAMES, "a the nothing an empty scene"]
    chinese = [
        said
        for table in (_CHINESE_THINGS, _CHINESE_LANDSCAPES, _CHINESE_SIZES, _CHINESE_PLACES)
        for several in table.values()
        for said in several
    ]
    chinese += [*_CHINESE_COLOURS.values(), *_CHINESE_COLOURED, *_CHINESE_FRAMES, "什么都没有一个的"]
    english += [*_ENGLISH_COURSES, *_ENGLISH_PARALLAX, "it"]
    chinese += [*_CHINESE_COURSES, *_CHINESE_DIRECTIONS.values(), *_CHINESE_PARALLAX, "它"]
    fields = {"", "c", "d", "m", "s"}
    words = {word.strip("{},;:.") for said in english for word in said.split()} - fields
    return sorted(words | {sign for said in chinese for sign in said if sign not in "{}cdms"} | {";"})
