"""What a text-to-video prompt can ask for: one thing before a backdrop, as words, as numbers and as a picture.

A `Scene` names a thing (or none), its colour, size and place, and a backdrop. `render` paints it, `describe` says it in
English or Chinese, `scene_code` is what the text encoder is taught to hand on. Everything that is seen is said: two
pictures of one scene are the same picture.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

Colour = tuple[float, float, float]

COLOURS: Final = MappingProxyType(
    {
        "red": (0.86, 0.13, 0.13),
        "orange": (0.96, 0.55, 0.10),
        "yellow": (0.97, 0.88, 0.20),
        "green": (0.16, 0.62, 0.24),
        "blue": (0.15, 0.33, 0.85),
        "purple": (0.50, 0.18, 0.66),
        "pink": (0.97, 0.56, 0.74),
        "brown": (0.47, 0.29, 0.14),
        "black": (0.06, 0.06, 0.07),
        "white": (0.97, 0.97, 0.96),
        "grey": (0.52, 0.52, 0.53),
    }
)
LANDSCAPES: Final = MappingProxyType(
    {
        "meadow": ((0.30, 0.56, 0.92), (0.76, 0.88, 0.97), (0.35, 0.66, 0.24)),
        "desert": ((0.42, 0.66, 0.93), (0.95, 0.90, 0.76), (0.87, 0.68, 0.38)),
        "sea": ((0.36, 0.64, 0.95), (0.85, 0.93, 0.98), (0.06, 0.32, 0.56)),
        "snow": ((0.58, 0.71, 0.86), (0.84, 0.90, 0.96), (0.93, 0.95, 0.98)),
        "night": ((0.02, 0.03, 0.12), (0.11, 0.15, 0.36), (0.05, 0.08, 0.09)),
        "sunset": ((0.36, 0.17, 0.47), (0.99, 0.56, 0.24), (0.15, 0.09, 0.16)),
    }
)
"""The sky's top, the sky at the horizon, the ground."""
BACKDROPS: Final = (*COLOURS, *LANDSCAPES)
SIZES: Final = MappingProxyType({"small": 0.24, "normal": 0.36, "large": 0.5})
"""Radius, where the frame reaches from -1 to 1."""
PLACES: Final = MappingProxyType({"left": -0.45, "centre": 0.0, "right": 0.45})
HORIZON: Final = 0.25
SHAPES: Final = ("ball", "box", "triangle", "star", "heart", "ring", "house", "tree")
THINGS: Final = (*SHAPES, "sun", "moon")
"""A sun and a moon are balls in the sky."""
SCENE_WIDTH: Final = 24
"""A scene at all, three backdrop colours, eight shapes, the thing's colour, size, column, row."""
TOLD: Final = 5 + SCENE_WIDTH
_MID: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture: `thing` of `THINGS` or None, in one of `COLOURS`, `SIZES`, `PLACES`, before one of `BACKDROPS`."""

    backdrop: str
    thing: str | None = None
    colour: str = "red"
    size: str = "normal"
    place: str = "centre"

    @property
    def shape(self) -> str | None:
        return "ball" if self.thing in ("sun", "moon") else self.thing

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the thing's middle."""
        return PLACES[self.place], -0.5 if self.thing in ("sun", "moon") else 0.12

    @property
    def backdrop_colours(self) -> tuple[Colour, Colour, Colour]:
        if self.backdrop in LANDSCAPES:
            return LANDSCAPES[self.backdrop]
        return (COLOURS[self.backdrop],) * 3


NOTHING: Final = Scene(backdrop="grey")
"""What there is to be seen when a prompt without a photo names no scene."""


def scene_code(scene: Scene | None) -> tuple[float, ...]:
    """`SCENE_WIDTH` numbers; all zero if a prompt names no scene. Colours count from mid grey."""
    if scene is None:
        return (0.0,) * SCENE_WIDTH
    backdrop = [2 * (part - _MID) for colour in scene.backdrop_colours for part in colour]
    if scene.thing is None:
        return (1.0, *backdrop, *([0.0] * (SCENE_WIDTH - 10)))
    shape = [float(scene.shape == name) for name in SHAPES]
    colour = [2 * (part - _MID) for part in COLOURS[scene.colour]]
    column, row = scene.centre
    size = (SIZES[scene.size] - SIZES["normal"]) / 0.14
    return (1.0, *backdrop, *shape, *colour, size, 2 * column, 2 * row)


def may_train(scene: Scene) -> bool:
    """Whether training may show this scene: one pair in seven of thing and colour, and of thing and backdrop, is kept
    for the examination, so that it asks for combinations that were never seen."""
    if scene.thing is None:
        return True
    thing = THINGS.index(scene.thing)
    pairs = (thing + 3 * list(COLOURS).index(scene.colour), thing + 5 * BACKDROPS.index(scene.backdrop))
    return all(pair % 7 for pair in pairs)


def stands_out(scene: Scene) -> bool:
    """Whether the thing can be told from what is behind it."""
    paint, behind = COLOURS[scene.colour], scene.backdrop_colours
    return min(max(abs(a - b) for a, b in zip(paint, colour, strict=True)) for colour in behind) > 0.25


def draw_scene(rng: random.Random, *, train: bool = True) -> Scene:
    """A random scene in which the thing can be told from what is behind it; one in ten has no thing."""
    while True:
        landscape = rng.random() < 0.5
        backdrop = rng.choice(tuple(LANDSCAPES) if landscape else tuple(COLOURS))
        if rng.random() < 0.1:
            if train:
                return Scene(backdrop=backdrop)
            continue
        thing = rng.choice(THINGS if landscape else SHAPES)
        scene = Scene(
            backdrop=backdrop,
            thing=thing,
            colour=rng.choice(tuple(COLOURS)),
            size=rng.choice(tuple(SIZES)),
            place=rng.choice(tuple(PLACES)),
        )
        if may_train(scene) == train and stands_out(scene):
            return scene


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _box(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.85


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum((x.abs() * 1.7 - y - 0.95) / 1.97, y - 0.85)


def _star(x: Tensor, y: Tensor) -> Tensor:
    fifth = 2 * torch.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2
    radius = torch.hypot(x, y)
    u, v = radius * torch.cos(angle), (radius * torch.sin(angle)).abs()
    return (u - 1.05) * 0.49 + v * 0.87


def _heart(x: Tensor, y: Tensor) -> Tensor:
    lobes = torch.hypot(x.abs() - 0.46, y + 0.35) - 0.54
    point = torch.maximum((x.abs() + y - 0.87) * 0.707, -y - 0.08)
    return torch.minimum(lobes, point)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74).abs() - 0.24


def _house(x: Tensor, y: Tensor) -> Tensor:
    walls = torch.maximum(x.abs() - 0.72, (y - 0.42).abs() - 0.53)
    return torch.minimum(walls, _roof(x, y))


def _roof(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum((x.abs() * 0.85 - y - 0.95) / 1.3, y + 0.08)


def _tree(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_crown(x, y), torch.maximum(x.abs() - 0.15, (y - 0.55).abs() - 0.42))


def _crown(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y + 0.32) - 0.68


_DISTANCE: Final[MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {
        "ball": _disc,
        "box": _box,
        "triangle": _triangle,
        "star": _star,
        "heart": _heart,
        "ring": _ring,
        "house": _house,
        "tree": _tree,
    }
)


@lru_cache(maxsize=512)
def _thing_maps(
    shape: str, size: float, centre: tuple[float, float], side: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each pixel the thing covers, [side, side], what its colour is multiplied by there, and how much of
    it is bark."""
    half = reach / side
    axis = torch.linspace(-reach + half, reach - half, side)
    y, x = torch.meshgrid((axis - centre[1]) / size, (axis - centre[0]) / size, indexing="ij")
    pixel = 2 * half / size

    def inside(distance: Tensor) -> Tensor:
        return (0.5 - distance / pixel).clamp(0, 1)

    cover, shade, bark = inside(_DISTANCE[shape](x, y)), torch.ones(side, side), torch.zeros(side, side)
    match shape:
        case "ball":
            shade = 1.08 - 0.38 * torch.hypot(x + 0.35, y + 0.4).clamp_max(1.6)
        case "house":
            shade = 1 - 0.5 * inside(_roof(x, y)) - 0.6 * inside(torch.maximum(x.abs() - 0.2, (y - 0.6).abs() - 0.35))
        case "tree":
            bark = 1 - inside(_crown(x, y))
            shade = 1.05 - 0.25 * torch.hypot(x + 0.25, y + 0.55).clamp_max(1.2)
    return cover, shade, bark


@lru_cache(maxsize=64)
def _backdrop(colours: tuple[Colour, Colour, Colour], side: int, reach: float) -> Tensor:
    half = reach / side
    rows = torch.linspace(-reach + half, reach - half, side)[:, None]
    top, middle, ground = (torch.tensor(colour) for colour in colours)
    along = ((rows + 1) / (HORIZON + 1)).clamp(0, 1)
    sky = top + (middle - top) * along
    if colours[0] == colours[2]:
        return sky.T[:, :, None].expand(3, side, side)
    land = ground * (1.12 - 0.3 * ((rows - HORIZON) / (1 - HORIZON)).clamp(0, 1))
    below = (0.5 + (rows - HORIZON) / (2 * half)).clamp(0, 1)
    return (sky + (land - sky) * below).T[:, :, None].expand(3, side, side)


def render(scene: Scene, side: int, reach: float = 1.0) -> Tensor:
    """The scene as [3, side, side] in [0, 1]. `reach` above 1 shows what lies around the frame as well, for a camera
    that moves: the frame is the middle `side / reach` pixels."""
    picture = _backdrop(scene.backdrop_colours, side, reach)
    if scene.shape is None:
        return picture.clamp(0, 1)
    cover, paint = cut_out(scene.shape, scene.colour, SIZES[scene.size], scene.centre, side, reach)
    return (picture + (paint - picture) * cover).clamp(0, 1)


def cut_out(
    shape: str, colour: str, size: float, centre: tuple[float, float], side: int, reach: float = 1.0
) -> tuple[Tensor, Tensor]:
    """How much of each pixel a thing covers, [side, side], and its paint there, [3, side, side] in [0, 1]."""
    cover, shade, bark = _thing_maps(shape, size, centre, side, reach)
    plain = torch.tensor(COLOURS[colour])[:, None, None]
    paint = (plain + (torch.tensor(COLOURS["brown"])[:, None, None] - plain) * bark) * shade
    return cover, paint.clamp(0, 1)


def cover(scene: Scene, side: int) -> Tensor:
    """How much of each pixel the scene's thing covers, [side, side]."""
    if scene.shape is None:
        return torch.zeros(side, side)
    return cut_out(scene.shape, scene.colour, SIZES[scene.size], scene.centre, side)[0]


def told(scene: Scene | None, tokens: int) -> Tensor:
    """What a token of a frame of `tokens` by `tokens` can be told, [tokens * tokens, `TOLD`]: its column and row, how
    far right of and below the thing it is, how large it is, and the scene's code: zeros if none is named."""
    axis = (torch.arange(tokens) + 0.5) * 2 / tokens - 1
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    across, down = NOTHING.centre if scene is None else scene.centre
    extent = torch.full((tokens, tokens), 8 / tokens - 0.75)
    places = torch.stack([column, row, column - across, row - down, extent], -1).flatten(0, 1)
    return torch.cat([places, torch.tensor(scene_code(scene)).expand(len(places), -1)], 1)


def nearest(picture: Tensor, candidates: list[Scene]) -> int:
    """Which of `candidates` the picture [3, S, S] in [0, 1] is nearest to, in mean squared error."""
    truths = torch.stack([render(scene, picture.shape[-1]) for scene in candidates])
    return int((truths - picture).square().mean((1, 2, 3)).argmin())
