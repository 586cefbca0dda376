"""Row 32: a checkpoint that is missing files, damaged, or of another model is refused, and the file is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from shared.messages import AttentionCache
from workers.engine import catalog, checkpoint, loading
from workers.engine.errors import CannotLoad
from workers.pool import Pool

Folders = Callable[[str], Path]
CPU = torch.device("cpu")


@pytest.fixture
def copy(checkpoints: Folders, tmp_path: Path) -> Path:
    """A checkpoint that may be spoilt."""
    return Path(shutil.copytree(checkpoints("wan21-i2v"), tmp_path / "spoilt"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def test_what_a_folder_says(checkpoints: Folders) -> None:
    image, text = checkpoint.read(checkpoints("wan21-i2v")), checkpoint.read(checkpoints("wan21-t2v"))
    assert (image.takes_image, image.has_clip, image.vae.scale_factor_temporal) == (True, True, 4)
    assert (text.takes_image, text.has_clip) == (False, False)
    assert checkpoint.read(checkpoints("wan22-i2v")).boundary_ratio == 0.9
    assert (image.conditioning, text.conditioning) == ("image_channels", "text")
    assert checkpoint.read(checkpoints("wan22-ti2v")).conditioning == "first_frame"


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "image_encoder/model.safetensors",
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    expected = "diffusion_pytorch_model.safetensors" if name.endswith("safetensors") else name
    with pytest.raises(CannotLoad, match=expected):
        checkpoint.read(copy)


def test_a_folder_without_tokenizer(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(CannotLoad, match="tokenizer"):
        checkpoint.read(copy)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_weights_are_named(copy: Path, keep: int) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CannotLoad, match=r"vae/diffusion_pytorch_model.safetensors: truncated"):
        checkpoint.read(copy)


def test_weights_that_are_something_else(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes((8).to_bytes(8, "little") + b"not json and more")
    with pytest.raises(CannotLoad, match="not a safetensors file"):
        checkpoint.read(copy)


def test_another_class_of_model(copy: Path) -> None:
    edit(copy / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(CannotLoad, match=r"transformer/config.json: is of class FluxTransformer2DModel"):
        checkpoint.read(copy)
    edit(copy / "model_index.json", transformer=["diffusers", "FluxTransformer2DModel"])
    with pytest.raises(CannotLoad, match="not a WanTransformer3DModel"):
        checkpoint.read(copy)


def test_not_a_diffusers_folder(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CannotLoad, match="not a diffusers checkpoint"):
        checkpoint.read(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(CannotLoad, match=r"model_index\.json"):
        checkpoint.read(tmp_path)


def test_weights_of_another_size_are_named(copy: Path) -> None:
    edit(copy / "transformer" / "config.json", ffn_dim=64)
    with pytest.raises(CannotLoad, match=r"diffusion_pytorch_model\.safetensors: tensor .*ffn.* has shape"):
        loading.load(checkpoint.read(copy), CPU, torch.float32)


def test_weights_of_another_type_are_named(copy: Path) -> None:
    """Quantised ones, whose numbers would be taken for weights."""
    from safetensors.torch import load_file, save_file

    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"].to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(CannotLoad, match=r"tensor decoder\.conv_in\.weight is of type I8, not BF16, F16, F32, F64"):
        loading.load(checkpoint.read(copy), CPU, torch.float32)


def test_missing_tensors_are_named(copy: Path) -> None:
    edit(copy / "transformer" / "config.json", num_layers=3)
    with pytest.raises(CannotLoad, match=r"transformer: \d+ tensors are missing, the first is blocks\.2\."):
        loading.load(checkpoint.read(copy), CPU, torch.float32)


def test_an_embedding_has_two_names_and_one_tensor_whatever_the_config_says_of_ties(copy: Path) -> None:
    """Published umT5 configs say ``tie_word_embeddings: false``, and the files hold ``shared.weight`` alone."""
    edit(copy / "text_encoder" / "config.json", tie_word_embeddings=False)
    encoder = loading.load(checkpoint.read(copy), CPU, torch.float32).text_encoder
    assert encoder.encoder.embed_tokens.weight is encoder.shared.weight
    assert encoder.shared.weight.abs().sum() > 0


def test_the_encoders_are_those_that_transformers_itself_loads(checkpoints: Folders) -> None:
    """Names, types (``wo`` of T5 stays in float32 beside float16) and values."""
    from transformers.models.clip.modeling_clip import CLIPVisionModel
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = checkpoints("wan21-i2v")
    for dtype in (torch.float16, torch.bfloat16):
        ours = loading.load(checkpoint.read(folder), CPU, dtype)
        for kind, part, model in (
            (UMT5EncoderModel, "text_encoder", ours.text_encoder),
            (CLIPVisionModel, "image_encoder", ours.image_encoder),
        ):
            theirs = kind.from_pretrained(str(folder / part), dtype=dtype, local_files_only=True)
            wanted, found = theirs.state_dict(), model.state_dict()
            assert wanted.keys() == found.keys()
            for name in wanted:
                assert wanted[name].dtype == found[name].dtype, name
                assert torch.equal(wanted[name], found[name]), name


def test_loading_tells_how_far_it_is_and_keeps_the_types(checkpoints: Folders) -> None:
    told: list[float] = []
    parts = loading.load(
        checkpoint.read(checkpoints("wan22-i2v")), CPU, torch.bfloat16, lambda fraction, _: told.append(fraction)
    )
    assert told == sorted(told)
    assert told[-2:] == [0.999, 1.0]
    assert len(parts.transformers) == 2
    block = parts.transformers[0].blocks[0]
    assert block.attn1.to_q.weight.dtype == torch.bfloat16
    assert block.scale_shift_table.dtype == block.norm2.weight.dtype == torch.float32
    assert parts.vae.dtype == torch.float32
    assert not block.attn1.to_q.weight.requires_grad


def test_every_card_of_the_catalogue_is_whole() -> None:
    for name in catalog.names():
        card = catalog.entry(name).card
        assert card.name == name
        assert card.width.default * card.height.default <= card.max_pixels
        for allowed in (card.width, card.height, card.num_frames, card.fps, card.steps):
            assert allowed.min <= allowed.default <= allowed.max
            assert (allowed.default - allowed.offset) % allowed.multiple_of == 0
        assert card.width.multiple_of % 2 == card.height.multiple_of % 2 == 0


def test_where_a_checkpoint_is_looked_for(checkpoints: Folders, tmp_path: Path) -> None:
    folder = checkpoints("wan21-t2v")
    assert catalog.locate(str(folder)) == (folder, None)
    shutil.copytree(folder, tmp_path / "models" / "Wan2.1-T2V-1.3B-Diffusers")
    environ = {"MODEL_CKPT_DIR": f"{tmp_path}/nothing:{tmp_path}/models"}
    found, card = catalog.locate("wan2.1-t2v-1.3b", environ)
    assert found == tmp_path / "models" / "Wan2.1-T2V-1.3B-Diffusers"
    assert card is not None
    with pytest.raises(CannotLoad, match=r"Wan2\.1-T2V-1\.3B-Diffusers/model_index\.json: missing; looked in"):
        catalog.locate("wan2.1-t2v-1.3b", {})
    with pytest.raises(CannotLoad, match="neither a folder nor in the catalogue; known: wan-demo"):
        catalog.locate("wan-9", {})


def test_a_card_is_derived_from_a_folder(checkpoints: Folders) -> None:
    found = checkpoint.read(checkpoints("wan21-i2v"))
    cache = AttentionCache(start_step=1, interval=2, end_step=3)
    card = catalog.served_card(Pool(model="x", serve_as="mine", cache=cache), found, None)
    assert (card.name, card.heads, card.cache, card.tasks) == ("mine", 8, cache, ("image-to-video",))
    assert (card.width.multiple_of, card.num_frames.multiple_of, card.num_frames.offset) == (16, 4, 1)
    text = catalog.derive(checkpoint.read(checkpoints("wan21-t2v")))
    assert text.tasks == ("text-to-video", "text-to-image", "video-to-video")


def test_a_folder_may_say_more_of_itself(copy: Path) -> None:
    edit(copy / "genfleet.json", text_to_video="zero_condition", card={"title": "Mine", "max_n": 2})
    card = catalog.derive(checkpoint.read(copy))
    assert (card.title, card.max_n) == ("Mine", 2)
    assert "text-to-video" in card.tasks
    edit(copy / "genfleet.json", card={"max_n": "many"})
    with pytest.raises(CannotLoad, match=r"genfleet\.json: card"):
        catalog.derive(checkpoint.read(copy))
    assert replace(card, title="") != card
