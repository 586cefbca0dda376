"""Checkpoints in Wan's own layout: the same classes with the same tensors as diffusers' folders give, and the same
results; what is missing, truncated or another model's is named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine import cases
from tests.engine.requests import image_request, picture, request
from tests.engine.scripted import Group
from tests.support.original_layout import CLIP, T5, rewrite
from workers.engine import catalog, checkpoint, loading, original, parts, pickled
from workers.engine.errors import CannotLoad
from workers.engine.original import vae
from workers.link import CannotLoad as FrameCannotLoad

Folders = Callable[[str], Path]
CPU = torch.device("cpu")
TYPES = {
    "wan21-t2v": "t2v",
    "wan21-i2v": "i2v",
    "wan21-flf2v": "flf2v",
    "wan22-i2v": "i2v",
    "wan22-ti2v": "ti2v",
    "wan21-vace": "vace",
}


@pytest.fixture(scope="module")
def twins(checkpoints: Folders, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A family's checkpoint in both layouts, where a folder of diffusers' says what Wan's leaves to the code."""
    made: dict[str, tuple[Path, Path]] = {}

    def pair(family: str) -> tuple[Path, Path]:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            folder = Path(shutil.copytree(checkpoints(family), root / "diffusers"))
            if (folder / "image_encoder").is_dir():
                edit(folder / "image_encoder" / "config.json", num_attention_heads=16, hidden_act="gelu")
            if family == "wan22-ti2v":
                published = vae._MEAN_22, vae._DEVIATION_22
                edit(folder / "vae" / "config.json", latents_mean=published[0], latents_std=published[1])
            (folder / "genfleet.json").unlink(missing_ok=True)
            made[family] = folder, rewrite(folder, root / "original", TYPES[family], shards=3)
        return made[family]

    return pair


@pytest.fixture
def spoilt(twins: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> Path:
    """An image-to-video checkpoint in Wan's layout that may be spoilt."""

    return Path(shutil.copytree(twins("wan21-i2v")[1], tmp_path / "spoilt"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def models(found: loading.Components) -> list[nn.Module]:
    return [*found.transformers, found.vae, found.text_encoder, *([found.image_encoder] if found.image_encoder else [])]


@pytest.mark.parametrize("family", sorted(TYPES))
def test_both_layouts_give_the_same_models(twins: Callable[[str], tuple[Path, Path]], family: str) -> None:
    ours, theirs = (checkpoint.read(folder) for folder in twins(family))
    assert (ours.layout, theirs.layout) == ("diffusers", "original")
    assert (ours.transformer, ours.vae) == (theirs.transformer, theirs.vae)
    assert (ours.boundary_ratio, ours.expand_timesteps) == (theirs.boundary_ratio, theirs.expand_timesteps)
    assert catalog.derive(ours).tasks == catalog.derive(theirs).tasks
    for dtype in (torch.float32, torch.bfloat16) if family == "wan21-i2v" else (torch.bfloat16,):
        pairs = [loading.load(each, CPU, dtype) for each in (ours, theirs)]
        for one, other in zip(*map(models, pairs), strict=True):
            assert type(one) is type(other)
            first, second = one.state_dict(), other.state_dict()
            assert first.keys() == second.keys()
            for name in first:
                assert first[name].dtype == second[name].dtype, name
                assert torch.equal(first[name], second[name]), name
        assert pairs[0].tokenizer("pan left").input_ids == pairs[1].tokenizer("pan left").input_ids


@pytest.mark.parametrize("family", sorted(TYPES))
def test_each_model_computes_the_same(twins: Callable[[str], tuple[Path, Path]], family: str) -> None:
    """So what the config says is right, too: heads, epsilons, means. Of transformers the configs are compared."""
    ours, theirs = (loading.load(checkpoint.read(folder), CPU, torch.float32) for folder in twins(family))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (1, 9), generator=generator)
    with torch.no_grad():
        assert torch.equal(ours.text_encoder(ids)[0], theirs.text_encoder(ids)[0])
        pixels = torch.rand(1, 3, 5, 32, 32, generator=generator)
        first, second = (each.vae.encode(pixels).latent_dist.mode() for each in (ours, theirs))
        assert torch.equal(first, second)
        assert torch.equal(ours.vae.decode(first)[0], theirs.vae.decode(first)[0])
        assert ours.vae.config.latents_mean == theirs.vae.config.latents_mean
        assert ours.vae.config.latents_std == theirs.vae.config.latents_std
        if ours.image_encoder is not None:
            from PIL import Image

            image = Image.effect_noise((40, 28), 60).convert("RGB")
            seen = [each.image_processor(images=image, return_tensors="pt").pixel_values for each in (ours, theirs)]
            assert torch.equal(*seen)
            hidden = [
                each.image_encoder(seen[0], output_hidden_states=True).hidden_states[-2] for each in (ours, theirs)
            ]
            assert torch.equal(*hidden)
    for one, other in zip(ours.transformers, theirs.transformers, strict=True):
        said, meant = dict(one.config), dict(other.config)
        for name in ("_name_or_path", "_use_default_values", "_diffusers_version", "rope_max_seq_len"):
            said.pop(name, None)
            meant.pop(name, None)
        assert {name: _plain(value) for name, value in said.items()} == {
            name: _plain(value) for name, value in meant.items()
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_a_job_gives_the_same_result(twins: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    image = picture(tmp_path)
    for family, asked, given in (
        ("wan21-t2v", request(steps=2), None),
        ("wan21-i2v", image_request(steps=2), image),
        ("wan22-i2v", image_request(steps=2), image),
    ):
        one, other = (cases.alone(folder, asked, given) for folder in twins(family))
        assert (one.latents == other.latents).all(), family
        assert (one.frames == other.frames).all(), family


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "Wan2.1_VAE.pth",
        T5,
        CLIP,
        "google/umt5-xxl",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-00002-of-00003.safetensors",
    ],
)
def test_a_missing_file_is_named(spoilt: Path, name: str) -> None:

    shutil.rmtree(spoilt / name) if (spoilt / name).is_dir() else (spoilt / name).unlink()
    expected = "diffusion_pytorch_model.safetensors" if name.endswith("index.json") else name
    with pytest.raises(CannotLoad, match=f"{expected}.*missing"):
        checkpoint.read(spoilt)


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", T5, CLIP, "diffusion_pytorch_model-00001-of-00003.safetensors"])
@pytest.mark.parametrize("keep", [3, -1])
def test_a_truncated_file_is_named(spoilt: Path, name: str, keep: int) -> None:
    file = spoilt / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CannotLoad, match=f"{name}: truncated"):
        checkpoint.read(spoilt)


def test_one_expert_of_two(twins: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:

    folder = Path(shutil.copytree(twins("wan22-i2v")[1], tmp_path / "one"))
    shutil.rmtree(folder / "low_noise_model")
    with pytest.raises(CannotLoad, match="low_noise_model: missing"):
        checkpoint.read(folder)


def test_files_of_another_model_are_named(
    spoilt: Path, twins: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:

    other = twins("wan22-ti2v")[1]
    vae_file = spoilt / "Wan2.1_VAE.pth"
    shutil.copy(other / "Wan2.2_VAE.pth", vae_file)
    with pytest.raises(CannotLoad, match="16 channels, the VAE has 48: one of them is another model's"):
        checkpoint.read(spoilt)
    shutil.copy(spoilt / T5, vae_file)
    with pytest.raises(CannotLoad, match=r"Wan2\.1_VAE\.pth: \d+ tensors are another model's"):
        checkpoint.read(spoilt)
    edit(spoilt / "config.json", model_type="s2v")
    with pytest.raises(CannotLoad, match=r"config\.json: model_type is 's2v'"):
        checkpoint.read(spoilt)


def test_tensors_of_another_size_are_named(spoilt: Path) -> None:
    edit(spoilt / "config.json", ffn_dim=64)
    with pytest.raises(CannotLoad, match=r"of-00003\.safetensors: tensor blocks\.0\.ffn.* has shape"):
        loading.load(checkpoint.read(spoilt), CPU, torch.float32)
    edit(spoilt / "config.json", ffn_dim=128, num_layers=3)
    with pytest.raises(CannotLoad, match=r"tensors are missing, the first is blocks\.2\."):
        loading.load(checkpoint.read(spoilt), CPU, torch.float32)


def test_a_group_says_which_file_it_cannot_load(spoilt: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a pool's group does it: told to the agent, with the file, before a second has been spent on other weights."""
    (spoilt / T5).unlink()
    with Group(tmp_path_factory.mktemp("g"), f'model = "{spoilt}"\nserve_as = "tiny"\ndevice = "cpu"\n', 1) as group:
        assert f"{spoilt / T5}: missing" in group.until(FrameCannotLoad).message
        assert group.wait() == 1


# --- .pth files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pth_file_holds_is_read_without_torch(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "a.pth"
    whole = torch.arange(12, dtype=torch.float32)
    state = {
        "a": torch.ones(2, 3, dtype=torch.bfloat16),
        "b": whole[4:10].view(2, 3),
        "c": nn.Parameter(torch.zeros(())),
        "d": torch.ones(1, dtype=torch.int64),
    }
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    told = pickled.header(file)
    assert {name: (info.dtype, info.shape, info.data_offsets) for name, info in told.items()} == {
        "a": ("BF16", (2, 3), (0, 12)),
        "b": ("F32", (2, 3), (16, 40)),
        "c": ("F32", (), (0, 4)),
        "d": ("I64", (1,), (0, 8)),
    }
    assert pickled.is_mappable(file) is zipped


class Harm:
    def __reduce__(self) -> Any:
        return (print, ("harm was done",))


def test_a_pth_file_cannot_make_anything_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for zipped in (True, False):
        torch.save({"a": Harm()}, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CannotLoad, match=r"bad\.pth: holds (builtins|__builtin__)\.print: not a plain file"):
            pickled.header(tmp_path / "bad.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("state", [{"model": {"a": torch.ones(1)}}, [torch.ones(1)], {1: torch.ones(1)}])
def test_a_pth_file_that_is_no_dict_of_tensors(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CannotLoad, match=r"odd\.pth: "):
        pickled.header(tmp_path / "odd.pth")


def test_a_folder_of_neither_layout(tmp_path: Path) -> None:
    assert not checkpoint.is_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    assert not original.is_original(tmp_path)
    with pytest.raises(CannotLoad, match=r"model_index\.json: missing"):
        checkpoint.read(tmp_path)


def test_an_old_pth_file_loads_too(twins: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:

    folder = Path(shutil.copytree(twins("wan21-t2v")[1], tmp_path / "old"))
    file = folder / "Wan2.1_VAE.pth"
    state = torch.load(file, weights_only=True)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    found = loading.load(checkpoint.read(folder), CPU, torch.float32)
    stored = parts.of(checkpoint.read(folder), "vae").tensors["post_quant_conv.weight"]
    assert torch.equal(found.vae.post_quant_conv.weight, state[stored.key])
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CannotLoad, match=r"Wan2\.1_VAE\.pth: truncated: \d+ bytes of \d+"):
        checkpoint.read(folder)
