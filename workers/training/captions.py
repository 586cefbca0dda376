"""What a clip may do and how people say so, in English and in Chinese.

A `Motion` has one name, a direction and the phrases that mean it. `caption` draws one wording of one motion; the same
generator state gives the same words. `camera_code` is the meaning that the text encoder is taught to hand on.
"""

import random
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

CODE_WIDTH: Final = 8
"""present, pan x, pan y, zoom, roll, shake, fade, still."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One camera motion: `direction` is (pan x, pan y, zoom, roll, shake, fade), phrases are without speed words."""

    name: str
    direction: tuple[float, float, float, float, float, float]
    english: tuple[str, ...]
    chinese: tuple[str, ...]

    @property
    def moves(self) -> bool:
        return any(self.direction)


def _pan(name: str, x: float, y: float, english: str, chinese: str) -> Motion:
    length = (x * x + y * y) ** 0.5
    vertical_only = x == 0
    verbs = ["pan {w}", "pan to the {w}", "the camera pans {w}", "camera moving {w}", "slide {w}", "move {w}"]
    verbs += ["the camera moves {w}", "a pan {w}", "panning {w}"]
    if vertical_only:
        verbs += ["tilt {w}", "the camera tilts {w}"]
    hanzi = [
        "向{w}移动",
        "镜头向{w}移动",
        "向{w}平移",
        "镜头往{w}移",
        "画面向{w}平移",
        "镜头{w}移",
        "往{w}摇",
        "向{w}移",
    ]
    if len(chinese) == 2:
        hanzi += ["向{w}方移动", "镜头向{w}方平移"]
    return Motion(
        name=name,
        direction=(x / length, y / length, 0, 0, 0, 0),
        english=tuple(v.format(w=english) for v in verbs),
        chinese=tuple(v.format(w=chinese) for v in hanzi),
    )


MOTIONS: Final[tuple[Motion, ...]] = (
    _pan("pan_left", -1, 0, "left", "左"),
    _pan("pan_right", 1, 0, "right", "右"),
    _pan("pan_up", 0, -1, "up", "上"),
    _pan("pan_down", 0, 1, "down", "下"),
    _pan("pan_up_left", -1, -1, "up and left", "左上"),
    _pan("pan_up_right", 1, -1, "up and right", "右上"),
    _pan("pan_down_left", -1, 1, "down and left", "左下"),
    _pan("pan_down_right", 1, 1, "down and right", "右下"),
    Motion(
        name="zoom_in",
        direction=(0, 0, 1, 0, 0, 0),
        english=("zoom in", "the camera zooms in", "zooming in", "push in", "dolly in", "move closer", "a zoom in"),
        chinese=("放大", "镜头推近", "推近", "镜头推进", "画面放大", "拉近镜头", "拉近"),
    ),
    Motion(
        name="zoom_out",
        direction=(0, 0, -1, 0, 0, 0),
        english=(
            "zoom out",
            "the camera zooms out",
            "zooming out",
            "pull back",
            "dolly out",
            "move away",
            "a zoom out",
        ),
        chinese=("缩小", "镜头拉远", "拉远", "镜头后退", "画面缩小", "后退"),
    ),
    Motion(
        name="rotate_left",
        direction=(0, 0, 0, -1, 0, 0),
        english=(
            "rotate left",
            "rotate counterclockwise",
            "turn anticlockwise",
            "the picture rotates counterclockwise",
            "spin left",
            "roll left",
            "rotating left",
            "rotate to the left",
        ),
        chinese=("逆时针旋转", "向左旋转", "画面逆时针旋转", "逆时针转动", "往左转"),
    ),
    Motion(
        name="rotate_right",
        direction=(0, 0, 0, 1, 0, 0),
        english=(
            "rotate right",
            "rotate clockwise",
            "turn clockwise",
            "the picture rotates clockwise",
            "spin right",
            "roll right",
            "rotating right",
            "rotate to the right",
        ),
        chinese=("顺时针旋转", "向右旋转", "画面顺时针旋转", "顺时针转动", "往右转"),
    ),
    Motion(
        name="shake",
        direction=(0, 0, 0, 0, 1, 0),
        english=(
            "shake",
            "the camera shakes",
            "shaking",
            "a shaky camera",
            "tremble",
            "handheld shake",
            "an earthquake",
        ),
        chinese=("抖动", "镜头晃动", "晃动", "画面抖动", "震动", "地震"),
    ),
    Motion(
        name="fade",
        direction=(0, 0, 0, 0, 0, 1),
        english=("fade out", "fade to black", "the picture fades to black", "fading out", "darken", "it gets dark"),
        chinese=("淡出", "渐暗", "画面变黑", "逐渐变暗", "画面淡出", "变暗"),
    ),
    Motion(
        name="still",
        direction=(0, 0, 0, 0, 0, 0),
        english=(
            "still",
            "static",
            "no motion",
            "a locked camera",
            "hold still",
            "nothing moves",
            "the camera stays still",
        ),
        chinese=("静止", "不动", "静止不动", "固定镜头", "画面静止", "镜头不动", "保持静止"),
    ),
)
BY_NAME: Final = MappingProxyType({motion.name: motion for motion in MOTIONS})

RATES: Final = MappingProxyType({"slow": 0.6, "normal": 1.0, "fast": 1.5})
"""How much faster or slower than `clips.PAN_PX` and its siblings."""

_ENGLISH_SPEED: Final = {
    "slow": ("slowly", "gently", "slow", "very slowly"),
    "normal": ("",),
    "fast": ("quickly", "fast", "rapidly", "very fast"),
}
_CHINESE_SPEED: Final = {
    "slow": ("缓慢", "慢慢", "缓缓", "慢速"),
    "normal": ("",),
    "fast": ("快速", "迅速", "飞快", "很快"),
}
# fmt: off
_ENGLISH_SUBJECTS: Final = (
    "cat", "dog", "raccoon", "bird", "horse", "man", "woman", "child", "face", "portrait", "astronaut", "rocket",
    "car", "motorcycle", "bicycle", "boat", "train", "street", "city", "building", "temple", "bridge",
    "mountain", "river", "forest", "flower", "garden", "stars",
    "room", "table", "cup of coffee", "plate of food", "book", "window", "landscape", "photo", "picture", "scene",
    "brick wall", "animal", "family",
)
_CHINESE_SUBJECTS: Final = (
    "猫", "狗", "浣熊", "小鸟", "马", "男人", "女人", "孩子", "人像", "宇航员", "火箭", "汽车", "摩托车", "自行车",
    "船", "火车", "街道", "城市", "建筑", "寺庙", "桥", "山", "河流", "森林", "花",
    "花园", "天空", "房间", "桌子", "一杯咖啡", "食物", "书", "窗户", "风景", "照片",
    "画面", "砖墙", "动物", "家人",
)
# fmt: on
_ENGLISH_FRAMES: Final = (
    "{m}",
    "{m}, {s}",
    "{s}, {m}",
    "{s}: {m}",
    "a photo of a {s}, {m}",
    "{m} over a {s}",
    "{m} on the {s}",
    "a video of the {s}, {m}",
    "please {m}",
    "cinematic shot of a {s}, {m}, high quality",
)
_CHINESE_FRAMES: Final = (
    "{m}",
    "{m}，{s}",
    "{s}，{m}",
    "一张{s}的照片，{m}",
    "{s}的视频，{m}",
    "请让镜头{m}",
    "电影感的{s}，{m}，高清",
)


def speed_word(speed: str, rng: random.Random, language: str) -> str:
    """A word for `speed` in "en" or "zh"; normal speed has none."""
    return rng.choice((_ENGLISH_SPEED if language == "en" else _CHINESE_SPEED)[speed])


def bare_subject(rng: random.Random, language: str) -> str:
    """A prompt that names something and no motion."""
    if language == "en":
        return rng.choice(("{s}", "a photo of a {s}", "a {s}")).format(s=rng.choice(_ENGLISH_SUBJECTS))
    return rng.choice(("{s}", "一张{s}的照片")).format(s=rng.choice(_CHINESE_SUBJECTS))


def phrase(motion: Motion, speed: str, rng: random.Random, language: str) -> str:
    """What is said of the camera alone, in "en" or "zh"."""
    if language == "en":
        adverb = rng.choice(_ENGLISH_SPEED[speed])
        said = rng.choice(motion.english)
        return f"{said} {adverb}".strip() if rng.random() < 0.6 else f"{adverb} {said}".strip()
    adverb = rng.choice(_CHINESE_SPEED[speed])
    said = rng.choice(motion.chinese)
    return said if not adverb else f"{adverb}{'地' if rng.random() < 0.5 else ''}{said}"


def caption(motion: Motion, speed: str, rng: random.Random, *, language: str | None = None) -> str:
    """One wording of `motion` at `speed` ("slow", "normal" or "fast"); `language` is "en", "zh" or drawn."""
    english = rng.random() < 0.5 if language is None else language == "en"
    said = phrase(motion, speed, rng, "en" if english else "zh")
    if english:
        text = rng.choice(_ENGLISH_FRAMES).format(m=said, s=rng.choice(_ENGLISH_SUBJECTS))
        return text.capitalize() if rng.random() < 0.3 else text
    return rng.choice(_CHINESE_FRAMES).format(m=said, s=rng.choice(_CHINESE_SUBJECTS))


def plain_prompt(motion: Motion, speed: str, language: str = "en") -> str:
    """The wording that the fixed evaluation uses: the motion's first phrase and the speed's first word."""
    if language == "en":
        return f"{motion.english[0]} {_ENGLISH_SPEED[speed][0]}".strip()
    return f"{_CHINESE_SPEED[speed][0]}{motion.chinese[0]}"


def camera_code(motion: Motion | None, speed: str) -> tuple[float, ...]:
    """`CODE_WIDTH` numbers that say what a caption means; None is a prompt that names no motion."""
    if motion is None:
        return (1.0, *([0.0] * (CODE_WIDTH - 1)))
    rate = RATES[speed] if motion.moves else 0.0
    return (1.0, *(rate * part for part in motion.direction), 0.0 if motion.moves else 1.0)


def vocabulary() -> list[str]:
    """Every word and every Chinese character that the grammar can say, sorted."""
    english = [phrase for motion in MOTIONS for phrase in motion.english]
    english += [word for words in _ENGLISH_SPEED.values() for word in words]
    english += [*_ENGLISH_SUBJECTS, *_ENGLISH_FRAMES]
    chinese = "".join(phrase for motion in MOTIONS for phrase in motion.chinese) + "地"
    chinese += "".join(word for words in _CHINESE_SPEED.values() for word in words)
    chinese += "".join(_CHINESE_SUBJECTS) + "".join(_CHINESE_FRAMES)
    words = {word.strip("{},:.").lower() for phrase in english for word in phrase.split()}
    signs = {sign for sign in chinese if sign not in "{}ms"}
    return sorted((words | signs | {",", ".", ":", "!", "?", "。", "，"}) - {"", "m", "s"})
