"""The shipped folder: diffusers layout, safetensors, and `genfleet.json` with what it was trained for."""

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

CHECKPOINT: Final = Path(__file__).parents[1] / "checkpoints" / "wan-demo"
SHIFT: Final = 30.0

DECLARATION: Final = {
    "name": "wan-demo",
    "family": "wan",
    "license": "MIT",
    "tasks": ["image-to-video", "text-to-video", "text-to-image"],
    "image_condition": "first_frame",
    "text_to_video": "imagined_frame",
    "max_sequence_length": 512,
    "prediction_type": "sample",
    "frames": {"first": 1, "every": 4, "trained": 17},
    "sizes": {"multiple_of": 16, "trained": ["128x128", "256x256"]},
    "defaults": {
        "size": "256x256",
        "num_frames": 17,
        "fps": 8,
        "steps": 4,
        "guidance_scale": 1.0,
        "shift": SHIFT,
        "solver": "unipc",
        "negative_prompt": "",
    },
}


def noise_scheduler(shift: float = SHIFT) -> UniPCMultistepScheduler:
    """UniPC over flow sigmas; the network names the clean latents, hence "sample"."""
    return UniPCMultistepScheduler(
        prediction_type="sample", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def export(
    folder: Path,
    transformer: WanTransformer3DModel,
    vae: AutoencoderKLWan,
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
) -> int:
    """Write the folder anew (a README.md in it stays); returns its size in bytes. The two large parts are stored in
    half precision and load into single."""
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pipeline = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.to(torch.float32),
        vae=vae.to(torch.float16),
        scheduler=noise_scheduler(),
        transformer=transformer.to(torch.float16),
    )
    pipeline.save_pretrained(folder)
    (folder / "genfleet.json").write_text(json.dumps(DECLARATION, indent=2) + "\n")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def load(folder: Path = CHECKPOINT) -> WanImageToVideoPipeline:
    """The folder as diffusers' own image-to-video pipeline, in single precision, without a progress bar."""
    pipeline = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
