"""`python -m workers.training`: make, train, examine and ship the demo model.

train     from nothing, or with --resume from where it stopped; the averaged weights are what is shipped
export    write the trained model to workers/checkpoints/wan-demo
evaluate  the fixed examination of the shipped model on held-out photographs
"""

from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from torch.multiprocessing.spawn import spawn

from workers.training import clips, codec, evaluate, export
from workers.training.model import build_transformer
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
    weights = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    label = f"{sha256(weights).hexdigest()[:12]}-{side}-{speed}-{language}-{steps}-{guidance}"
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


if __name__ == "__main__":
    app()
