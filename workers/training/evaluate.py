"""The fixed examination: held-out photographs, every motion, against the clip that the camera would really have shot.

A clip follows its prompt when, among the true clips of all fifteen motions of that photo at that speed, the one asked
for is the nearest. Beside it stand the still picture (what doing nothing scores) and the codec's ceiling.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import WanImageToVideoPipeline
from PIL import Image, ImageDraw

from workers.training import captions, clips, codec
from workers.training.material import FRAMES


@dataclass(frozen=True, kw_only=True)
class Score:
    """One clip: what it was taken for, and PSNR in dB and SSIM against the true clip."""

    photo: str
    motion: str
    taken_for: str
    psnr: float
    static_psnr: float
    ceiling_psnr: float
    first_frame_psnr: float
    ssim: float
    static_ssim: float

    @property
    def followed(self) -> bool:
        return self.motion == self.taken_for


def ssim(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004, 7x7 uniform windows, luma) of two clips [3, t, H, W] in [-1, 1]."""
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)
    x, y = (((clip.clamp(-1, 1) + 1) / 2 * luma).sum(0)[:, None] for clip in (one, other))

    def mean(frames: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(frames, 7, 1)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())


def true_clips(photo: torch.Tensor, speed: str, side: int) -> torch.Tensor:
    """What a camera over `photo` [3, S, S] (in [0, 1], S = 1.5 x side) shoots: [15 motions, 3, 17, side, side]."""
    count = len(captions.MOTIONS)
    path = clips.camera_path(list(captions.MOTIONS), [speed] * count, torch.arange(FRAMES))
    sources = photo[None].expand(count, -1, -1, -1)
    return clips.film(sources, path, side, torch.ones(count), torch.zeros(count, 2))


def animate(
    pipeline: WanImageToVideoPipeline,
    first: torch.Tensor,
    prompt: str,
    *,
    steps: int,
    guidance: float = 1.0,
    seed: int = 0,
    frames: int = FRAMES,
) -> torch.Tensor:
    """A clip [3, frames, H, W] in [-1, 1] from a first frame [3, H, W] in [-1, 1], by diffusers' own pipeline.

    That rounds the number of frames to a multiple of the VAE's compression in time plus one: with no compression, to
    one more than it is asked for. So it is asked for one less.
    """
    video = pipeline(
        image=(first[None] + 1) / 2,
        prompt=prompt,
        height=first.shape[-2],
        width=first.shape[-1],
        num_frames=frames - 1,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).frames[0]
    return video.transpose(0, 1).to(torch.float32) * 2 - 1


@torch.no_grad()
def through_codec(pipeline: WanImageToVideoPipeline, clip: torch.Tensor) -> torch.Tensor:
    """The clip [1, 3, t, H, W] after the model's own VAE and back: the best that any transformer could do."""
    return pipeline.vae.decode(pipeline.vae.encode(clip).latent_dist.mode()).sample


def examine(
    pipeline: WanImageToVideoPipeline,
    photo: str,
    *,
    side: int,
    speed: str = "normal",
    language: str = "en",
    steps: int = 4,
    guidance: float = 1.0,
) -> tuple[list[Score], torch.Tensor]:
    """One held-out photo with every motion, seeds fixed: the scores, and for the contact sheet [15, 3, 4, side, side]:
    frames 1, 9 and 17 as made and frame 17 as it truly is."""
    truth = true_clips(clips.load_photo(clips.photos("heldout")[photo], side * 3 // 2), speed, side)
    still = truth[:1, :, :1].expand(-1, -1, FRAMES, -1, -1)
    scores, shown = [], []
    for index, motion in enumerate(captions.MOTIONS):
        prompt = captions.plain_prompt(motion, speed, language)
        made = animate(pipeline, truth[index, :, 0], prompt, steps=steps, guidance=guidance, seed=index)
        distance = (made[None, :, 4:] - truth[:, :, 4:]).square().mean((1, 2, 3, 4))
        true = truth[index : index + 1]
        score = Score(
            photo=photo,
            motion=motion.name,
            taken_for=captions.MOTIONS[int(distance.argmin())].name,
            psnr=float(codec.psnr(made[None], true)),
            static_psnr=float(codec.psnr(still, true)),
            ceiling_psnr=float(codec.psnr(through_codec(pipeline, true), true)),
            first_frame_psnr=float(codec.psnr(made[None, :, :1], true[:, :, :1])),
            ssim=ssim(made, true[0]),
            static_ssim=ssim(still[0], true[0]),
        )
        scores.append(score)
        shown.append(torch.cat([made[:, [0, 8, 16]], true[0, :, 16:]], 1))
        print(
            f"{photo} {motion.name}: {score.taken_for} {score.psnr:.1f} dB, still {score.static_psnr:.1f}", flush=True
        )
    return scores, torch.stack(shown)


def summary(scores: list[Score]) -> str:
    """The report: a line per motion and the whole."""
    lines = [f"{'motion':16}{'followed':>9}{'PSNR':>7}{'still':>7}{'codec':>7}{'SSIM':>7}{'still':>7}"]
    moving = {motion.name for motion in captions.MOTIONS if motion.moves}

    def line(label: str, part: list[Score]) -> str:
        count = len(part)
        figures = [
            sum(getattr(score, field) for score in part) / count
            for field in ("psnr", "static_psnr", "ceiling_psnr", "ssim", "static_ssim")
        ]
        followed = f"{sum(score.followed for score in part)}/{count}"
        levels = "".join(f"{x:7.1f}" for x in figures[:3])
        return f"{label:16}{followed:>9}{levels}{figures[3]:7.2f}{figures[4]:7.2f}"

    for motion in captions.MOTIONS:
        part = [score for score in scores if score.motion == motion.name]
        wrong = sorted({score.taken_for for score in part if not score.followed})
        lines.append(line(motion.name, part) + (f"  taken for {', '.join(wrong)}" if wrong else ""))
    lines.append(line("all", scores))
    lines.append(line("moving", [score for score in scores if score.motion in moving]))
    first = sum(score.first_frame_psnr for score in scores) / len(scores)
    worst = min(score.first_frame_psnr for score in scores)
    lines.append(f"first frame {first:.1f} dB, at worst {worst:.1f} dB")
    return "\n".join(lines)


def keep(scores: list[Score], shown: torch.Tensor, path: Path) -> None:
    """Put one photo's results aside, so that the examination can be done in parts."""
    pixels = ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    torch.save({"scores": [asdict(score) for score in scores], "shown": pixels}, path)


def recall(path: Path) -> tuple[list[Score], torch.Tensor]:
    """What `keep` put aside; the frames are uint8."""
    kept = torch.load(path, weights_only=True)
    return [Score(**score) for score in kept["scores"]], kept["shown"]


def draw_sheet(shown: list[torch.Tensor], path: Path, thumb: int = 88) -> None:
    """A row per motion and a block of four frames per photo; `shown` holds uint8 [15, 3, 4, side, side] per photo."""
    label, gap = 104, 8
    blocks = len(shown)
    width = label + blocks * (4 * thumb + gap)
    sheet = Image.new("RGB", (width, 18 + len(captions.MOTIONS) * thumb), "white")
    pen = ImageDraw.Draw(sheet)
    for block in range(blocks):
        for column, title in enumerate(("frame 1", "frame 9", "frame 17", "true 17")):
            pen.text((label + block * (4 * thumb + gap) + column * thumb + 4, 3), title, fill="black")
    for number, motion in enumerate(captions.MOTIONS):
        pen.text((4, 18 + number * thumb + thumb // 2 - 6), motion.name, fill="black")
        for block, frames in enumerate(shown):
            for column, frame in enumerate(frames[number].permute(1, 2, 3, 0).numpy()):
                picture = Image.fromarray(frame).resize((thumb, thumb), Image.Resampling.LANCZOS)
                sheet.paste(picture, (label + block * (4 * thumb + gap) + column * thumb, 18 + number * thumb))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
