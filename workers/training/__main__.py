"""`python -m workers.training`: make, train, examine and ship the demo model.

train     from nothing, or with --resume from where it stopped; the averaged weights are what is shipped
export    write the trained model to workers/checkpoints/wan-demo
evaluate  the fixed examination of the shipped model on held-out photographs
scenes    the same of text-to-video, on scenes that training never showed
layers    the same of things that move by themselves and of parallax
sweep     what fewer steps and the caches do to speed and pictures, as a table
"""

from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from torch.multiprocessing.spawn import spawn

from workers.training import clips, codec, evaluate, examine_layers, examine_scenes, export, sweep
from workers.training.model import build_transformer
from workers.training.sampling import Sampler
from workers.training.train import prepare, train_rank

WORK = Path("build/demo-model")
PICTURES, SEED = 480, 0

app = App(name="workers.training", help=__doc__)


@app.command
def train(
    *,
    minutes: float = 90,
    resume: Annotated[bool, Parameter(negative="")] = False,
    ranks: int = 2,
    work: Path = WORK,
    seed: int = SEED,
) -> None:
    """Train for at most `minutes` with `ranks` processes of one thread each; state, log and data go to `work`."""
    prepare(work, PICTURES, SEED)
    (work / "meeting").unlink(missing_ok=True)
    if not resume:
        (work / "loss.log").unlink(missing_ok=True)
    run = partial(train_rank, ranks=ranks, work=work, minutes=minutes, resume=resume, pictures=PICTURES, seed=seed)
    if ranks == 1:
        run(0)
    else:
        spawn(run, nprocs=ranks)


@app.command(name="export")
def ship(*, work: Path = WORK, folder: Path = export.CHECKPOINT) -> None:
    """Write the averaged weights in `work` as a diffusers folder."""
    material = prepare(work, PICTURES, SEED)
    transformer = build_transformer()
    transformer.load_state_dict(torch.load(work / "state.pt", weights_only=True)["average"])
    size = export.export(
        folder, transformer.eval(), codec.build_vae(material.basis), material.encoder, material.tokenizer
    )
    print(f"{folder}: {size / 1e6:.1f} MB")


@app.command(name="evaluate")
def examine(
    *,
    folder: Path = export.CHECKPOINT,
    photos: tuple[str, ...] = (),
    side: int = 256,
    speed: str = "normal",
    language: str = "en",
    steps: int = 4,
    guidance: float = 1.0,
    results: Path = WORK / "results",
    sheet: Path | None = None,
) -> None:
    """Print the figures of all held-out photos, or of `photos`; `sheet` is where a contact sheet (PNG) goes.

    Each photo's results are kept in `results` and not made again as long as the transformer is the same.
    """
    label = f"{_digest(folder)}-{side}-{speed}-{language}-{steps}-{guidance}"
    results.mkdir(parents=True, exist_ok=True)
    pipeline = export.load(folder)
    scores: list[evaluate.Score] = []
    shown: list[torch.Tensor] = []
    for photo in photos or tuple(clips.photos("heldout")):
        file = results / f"{photo}-{label}.pt"
        if not file.exists():
            found = evaluate.examine(
                pipeline, photo, side=side, speed=speed, language=language, steps=steps, guidance=guidance
            )
            evaluate.keep(*found, file)
        photo_scores, frames = evaluate.recall(file)
        scores += photo_scores
        shown.append(frames)
    print(evaluate.summary(scores))
    if sheet is not None:
        evaluate.draw_sheet(shown, sheet)


@app.command(name="scenes")
def examine_text(
    *,
    folder: Path = export.CHECKPOINT,
    side: int = 128,
    steps: int = 4,
    count: int = 3,
    language: str = "en",
    results: Path = WORK / "results",
    sheet: Path | None = None,
) -> None:
    """Print how well words decide what is seen, over `count` scenes for each motion; `sheet` is where a contact sheet
    (PNG) of the first of each goes."""
    file = results / f"scenes-{_digest(folder)}-{side}-{steps}-{count}-{language}.pt"
    results.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        sampler = Sampler(folder)
        asked = examine_scenes.examined(count)
        found = [
            examine_scenes.examine(sampler, each, side=side, steps=steps, language=language, seed=number)
            for number, each in enumerate(asked)
        ]
        examine_scenes.keep(found, file)
    scores, shown = examine_scenes.recall(file)
    print(examine_scenes.summary(scores))
    if sheet is not None:
        examine_scenes.draw_sheet(scores[::count], shown[::count], sheet)


@app.command(name="layers")
def examine_layered(*, folder: Path = export.CHECKPOINT, side: int = 128, steps: int = 4) -> None:
    """Print how well things in photos go where they are told, and how well near parts of a pan move faster."""
    sampler = Sampler(folder)
    scores = [
        score
        for number, photo in enumerate(clips.photos("heldout"))
        for score in examine_layers.examine(sampler, photo, number, side=side, steps=steps)
    ]
    print(examine_layers.summary(scores))


@app.command(name="sweep")
def examine_steps(
    *,
    folder: Path = export.CHECKPOINT,
    side: int = 128,
    steps: tuple[int, ...] = (1, 2, 4, 6, 8, 12),
    caches: Annotated[bool, Parameter(negative="--no-caches")] = True,
    photos: tuple[str, ...] = ("cat", "coffee"),
) -> None:
    """Print a table of numbers of steps and of caches."""
    print(sweep.sweep(Sampler(folder), sweep.ways(steps, caches=caches), photos, side=side))


@app.command(name="seconds")
def measure(*, folder: Path = export.CHECKPOINT, side: int = 256, steps: int = 8, tries: int = 3) -> None:
    """Print how long denoising one clip takes, each try and the best."""
    found = sweep.seconds(Sampler(folder), side=side, steps=steps, tries=tries)
    print(f"{side}x{side}x17, {steps} steps: {', '.join(f'{each:.1f}' for each in found)} s; best {min(found):.1f} s")


def _digest(folder: Path) -> str:
    weights = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    return sha256(weights).hexdigest()[:12]


if __name__ == "__main__":
    app()
