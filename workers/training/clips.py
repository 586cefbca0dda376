"""Pictures and the clips made from them: a virtual camera over a still source, so that the true motion is known.

Speeds are in pixels (or ratio, or radians) per frame and independent of the frame's size, so that what is learnt on
small frames holds on large ones.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from workers.training.captions import RATES, Motion

PAN_PX: Final = 2.0
ZOOM_RATIO: Final = 1.018
ROLL_RADIANS: Final = math.radians(1.1)
SHAKE_PX: Final = 5.0
FADE_PER_FRAME: Final = 0.035
SOURCE_PX: Final = 384
"""Side of a source picture in the bank: a 256 px frame plus the longest fast pan (2 x 1.5 x 16 px) fits into it."""

PHOTOS: Final = Path(__file__).parent / "photos"


@dataclass(frozen=True)
class CameraPath:
    """Where the camera is in each frame, tensors [batch, frames]: shift in px, window scale, roll in radians, gain."""

    dx: torch.Tensor
    dy: torch.Tensor
    scale: torch.Tensor
    roll: torch.Tensor
    gain: torch.Tensor


def camera_path(motions: list[Motion], speeds: list[str], frames: torch.Tensor) -> CameraPath:
    """The path of each clip at the frame numbers `frames` [frames] (0 is the photo itself, where nothing has moved)."""
    direction = torch.tensor([motion.direction for motion in motions], dtype=torch.float32)
    rate = torch.tensor([RATES[speed] for speed in speeds], dtype=torch.float32)
    t = frames.to(torch.float32)[None]
    pan_x, pan_y, zoom, roll, shake, fade = (part[:, None] for part in (direction * rate[:, None]).unbind(1))
    tremor_x, tremor_y = torch.sin(2.1 * t), torch.sin(1.3 * t)
    return CameraPath(
        dx=pan_x * PAN_PX * t + shake * SHAKE_PX * tremor_x,
        dy=pan_y * PAN_PX * t + shake * SHAKE_PX * tremor_y,
        scale=torch.exp(-zoom * math.log(ZOOM_RATIO) * t),
        roll=roll * ROLL_RADIANS * t,
        gain=(1 - fade * FADE_PER_FRAME * t).clamp_min(0),
    )


def film(
    sources: torch.Tensor, path: CameraPath, side: int, window: torch.Tensor, centre: torch.Tensor
) -> torch.Tensor:
    """Clips [batch, 3, frames, side, side] in [-1, 1] of `sources` [batch, 3, S, S] in [0, 1].

    `window` [batch] is how many source pixels one frame pixel covers; `centre` [batch, 2] is the middle of the first
    frame in the source's normalised coordinates (-1..1).
    """
    batch, frames = path.dx.shape
    full = sources.shape[-1]
    shrink = (window * side / full)[:, None]
    cos, sin = torch.cos(path.roll), torch.sin(path.roll)
    theta = torch.empty(batch, frames, 2, 3)
    theta[..., 0, 0] = shrink * path.scale * cos
    theta[..., 0, 1] = shrink * path.scale * sin
    theta[..., 1, 0] = -shrink * path.scale * sin
    theta[..., 1, 1] = shrink * path.scale * cos
    theta[..., 0, 2] = centre[:, None, 0] + path.dx * window[:, None] * 2 / full
    theta[..., 1, 2] = centre[:, None, 1] + path.dy * window[:, None] * 2 / full
    grid = F.affine_grid(theta.flatten(0, 1), [batch * frames, 3, side, side], align_corners=False)
    tall = grid.view(batch, frames * side, side, 2)
    shot = F.grid_sample(sources, tall, padding_mode="reflection", align_corners=False)
    return shot.view(batch, 3, frames, side, side) * path.gain[:, None, :, None, None] * 2 - 1


def load_photo(path: Path, side: int | None = None) -> torch.Tensor:
    """A photo as [3, H, W] in [0, 1]; with `side`, its middle square at that size."""
    picture = Image.open(path).convert("RGB")
    if side is not None:
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        box = (left, top, left + short, top + short)
        picture = picture.resize((side, side), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32) / 255


def photos(part: str) -> dict[str, Path]:
    """The photographs of one part, "train" or "heldout", by name."""
    return {path.stem: path for path in sorted((PHOTOS / part).glob("*.jpg"))}


def _texture(rng: random.Random, generator: np.random.Generator, side: int) -> Image.Image:
    """Noise whose spectrum falls like that of natural scenes (amplitude ~ 1 / frequency), in two or three colours."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1.0
    fall = frequency ** -rng.uniform(0.8, 1.6)
    phase = np.fft.fft2(generator.standard_normal((3, side, side)))
    noise = np.fft.ifft2(phase * fall).real
    noise = (noise - noise.mean((1, 2), keepdims=True)) / noise.std((1, 2), keepdims=True)
    base = np.array([rng.uniform(20, 235) for _ in range(3)])
    grey = rng.uniform(15, 50) * noise[:1]
    tint = rng.uniform(0, 20) * noise
    return Image.fromarray(np.clip(base[:, None, None] + grey + tint, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _dead_leaves(rng: random.Random, textures: list[Image.Image], side: int) -> Image.Image:
    """Overlapping textured shapes of many sizes: edges, corners and occlusions as scenes have them."""
    canvas = rng.choice(textures).copy()
    largest = rng.uniform(0.12, 0.4) * side
    for _ in range(rng.randint(10, 90)):
        radius = max(3.0, largest * rng.random() ** 2.2)
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        mask = Image.new("L", (side, side), 0)
        draw = ImageDraw.Draw(mask)
        match rng.randint(0, 3):
            case 0:
                squash = rng.uniform(0.4, 1.0)
                draw.ellipse((x - radius, y - radius * squash, x + radius, y + radius * squash), fill=255)
            case 1:
                turns = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 7)))
                draw.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns], fill=255)
            case 2:
                angle = rng.uniform(0, math.pi)
                ends = [(x + k * 2 * radius * math.cos(angle), y + k * 2 * radius * math.sin(angle)) for k in (-1, 1)]
                draw.line(ends, fill=255, width=max(2, int(radius * rng.uniform(0.05, 0.4))))
            case _:
                draw.rectangle((x - radius, y - radius * 0.7, x + radius, y + radius * 0.7), fill=255)
        if rng.random() < 0.5:
            paint = rng.choice(textures)
        else:
            paint = Image.new("RGB", (side, side), (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)))
        canvas.paste(paint, mask=mask)
    return canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))


def _photo_source(rng: random.Random, photo: Image.Image, side: int) -> Image.Image:
    """A random square of a photo, turned, mirrored and recoloured."""
    crop = rng.uniform(0.55, 1.0) * min(photo.size)
    left, top = rng.uniform(0, photo.width - crop), rng.uniform(0, photo.height - crop)
    picture = photo.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + crop, top + crop))
    picture = picture.rotate(90 * rng.randint(0, 3))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        picture = enhance(picture).enhance(rng.uniform(0.6, 1.4))
    return picture


def build_bank(count: int, seed: int, side: int = SOURCE_PX) -> torch.Tensor:
    """`count` source pictures, uint8 [count, 3, side, side]: half from the training photos, half procedural."""
    rng = random.Random(seed)
    generator = np.random.default_rng(seed)
    originals = [Image.open(path).convert("RGB") for path in photos("train").values()]
    textures = [_texture(rng, generator, side) for _ in range(48)]
    bank = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for index in range(count):
        photo = index % 2 == 1
        picture = _photo_source(rng, rng.choice(originals), side) if photo else _dead_leaves(rng, textures, side)
        bank[index] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return bank
