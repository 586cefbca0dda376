"""Pulling checkpoints from servers that answer as the hubs do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.support.hub_server import COMMIT, REPOSITORY, HubServer
from workers.hub import manifest, repositories
from workers.hub.hubs import HubError, Listing, hub
from workers.hub.pull import AT_ONCE, BACKOFF_S, is_complete, needed, pull
from workers.hub.repositories import HUBS, HubName

WEIGHTS = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
FILES = {
    "model_index.json": b'{"_class_name": "WanPipeline"}',
    WEIGHTS: bytes(range(256)) * 300,
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": b"second" * 4000,
    "transformer/config.json": b"{}",
    "tokenizer/spiece.model": b"pieces" * 50,
    "README.md": b"# a model",
    "assets/demo.mp4": b"a film",
    "LICENSE.txt": b"Apache-2.0",
}
NEEDED = set(FILES) - {"README.md", "assets/demo.mp4"}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(dict(FILES)) as running:
        yield running


class Waits:
    """Seconds that were slept, without sleeping."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def pulled(server: HubServer, folder: Path, name: HubName = "huggingface", **more: object) -> manifest.Manifest:
    options = {"sleep": Waits()} | more
    return await pull(hub(name, server.url), REPOSITORY, folder, **options)  # type: ignore[arg-type]


async def listed(server: HubServer) -> Listing:
    async with httpx.AsyncClient() as client:
        return await hub("huggingface", server.url).listing(client, REPOSITORY, "main")


def content(folder: Path) -> dict[str, bytes]:
    ours = {manifest.NAME, ".genfleet-pull.lock"}
    found = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if name not in ours}


@pytest.mark.parametrize("name", HUBS)
async def test_what_a_checkpoint_needs_is_there_and_recorded(server: HubServer, tmp_path: Path, name: HubName) -> None:
    told: list[tuple[int, int, str]] = []
    made = await pulled(server, tmp_path, name, on_progress=lambda *each: told.append(each))
    assert content(tmp_path) == {path: FILES[path] for path in NEEDED}
    assert made == manifest.read(tmp_path)
    assert made.revision == ("master" if name == "modelscope" else COMMIT)
    assert made.complete
    assert made.files[WEIGHTS].published
    assert manifest.faults(tmp_path, made) == []
    total = sum(len(FILES[path]) for path in NEEDED)
    assert told[-1][:2] == (total, total)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert is_complete(tmp_path)
    assert is_complete(tmp_path, made.revision)
    assert not is_complete(tmp_path, "another")


@pytest.mark.parametrize("name", HUBS)
async def test_what_is_there_is_not_fetched_again(server: HubServer, tmp_path: Path, name: HubName) -> None:
    await pulled(server, tmp_path, name)
    server.requests.clear()
    (tmp_path / "transformer" / "config.json").unlink()
    await pulled(server, tmp_path, name)
    assert server.fetched() == [("transformer/config.json", "")]
    # The revision that is recorded is the one that is asked for, not whatever the branch is at by now.
    assert COMMIT in server.requests[0][0] or name == "modelscope"


async def test_a_download_that_breaks_off_is_resumed(server: HubServer, tmp_path: Path) -> None:
    server.cut[WEIGHTS] = 50_000
    waits = Waits()
    await pulled(server, tmp_path, sleep=waits)
    ranges = [ranged for path, ranged in server.fetched() if path == WEIGHTS]
    assert ranges == ["", "bytes=50000-"]
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert waits.seconds == [BACKOFF_S[0]]


async def test_a_pull_that_was_killed_is_resumed(server: HubServer, tmp_path: Path) -> None:
    """What another process left: a part, no manifest. A part of other content is not gone on with."""
    listing = await listed(server)
    (file,) = (file for file in listing.files if file.path == WEIGHTS)
    target = tmp_path / WEIGHTS
    target.parent.mkdir()
    part = target.with_name(f".{target.name}.{file.identity}.part")
    part.write_bytes(FILES[WEIGHTS][:1234])
    other = target.with_name(f".{target.name}.0000000000000000.part")
    other.write_bytes(b"of another revision")
    await pulled(server, tmp_path)
    assert [ranged for path, ranged in server.fetched() if path == WEIGHTS] == ["bytes=1234-"]
    assert target.read_bytes() == FILES[WEIGHTS]
    assert not part.exists()
    assert not other.exists()


async def test_a_part_that_went_bad_is_fetched_anew(server: HubServer, tmp_path: Path) -> None:
    listing = await listed(server)
    (file,) = (file for file in listing.files if file.path == WEIGHTS)
    target = tmp_path / WEIGHTS
    target.parent.mkdir()
    target.with_name(f".{target.name}.{file.identity}.part").write_bytes(b"x" * 1000)
    await pulled(server, tmp_path)
    assert [ranged for path, ranged in server.fetched() if path == WEIGHTS] == ["bytes=1000-", ""]
    assert target.read_bytes() == FILES[WEIGHTS]


async def test_a_mirror_that_knows_no_ranges(server: HubServer, tmp_path: Path) -> None:
    server.ignores_range = True
    server.cut[WEIGHTS] = 50_000
    await pulled(server, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("path", [WEIGHTS, "transformer/config.json"])
async def test_content_with_another_digest_is_refused(server: HubServer, tmp_path: Path, path: str) -> None:
    """Of a large file the SHA-256 is known, of a small one git's name. Once may be an accident."""
    wrong = bytes(len(FILES[path]))
    server.lies[path] = wrong
    await pulled(server, tmp_path / "once")
    assert (tmp_path / "once" / path).read_bytes() == FILES[path]
    there = hub("huggingface", server.url)
    before = await listed(server)
    server.files[path] = wrong

    async def as_before(*_: object) -> Listing:
        return before

    there.listing = as_before  # type: ignore[method-assign, assignment]
    with pytest.raises(HubError, match=f"{path}: what huggingface sent, twice, has not the digest"):
        await pull(there, REPOSITORY, tmp_path / "twice", sleep=Waits())
    assert not (tmp_path / "twice" / path).exists()
    assert not is_complete(tmp_path / "twice")


@pytest.mark.parametrize("name", HUBS)
async def test_a_file_that_is_listed_and_missing_is_named(server: HubServer, tmp_path: Path, name: HubName) -> None:
    server.missing.add(WEIGHTS)
    with pytest.raises(HubError, match=r"of-00002\.safetensors: not found"):
        await pulled(server, tmp_path, name)
    left = manifest.read(tmp_path)
    assert left is not None
    assert not left.complete
    server.missing.clear()
    await pulled(server, tmp_path, name)
    assert is_complete(tmp_path)


@pytest.mark.parametrize("name", HUBS)
async def test_a_repository_or_revision_that_is_not_there(server: HubServer, tmp_path: Path, name: HubName) -> None:
    with pytest.raises(HubError, match="not found"):
        await pulled(server, tmp_path, name, revision="v9")
    with pytest.raises(HubError, match="not found"):
        await pull(hub(name, server.url), "owner/other", tmp_path, sleep=Waits())


async def test_the_token_goes_to_the_hub_and_not_on_to_where_it_redirects(server: HubServer, tmp_path: Path) -> None:
    server.token = "secret"
    with pytest.raises(HubError, match="a token is needed"):
        await pulled(server, tmp_path)
    await pulled(server, tmp_path, token="secret")
    for path, _, authorization, host in server.requests:
        if path.startswith("/cdn/"):
            assert (authorization, host) == ("", f"localhost:{server.port}")


async def test_a_hub_that_is_busy_is_asked_again(server: HubServer, tmp_path: Path) -> None:
    server.failures = 3
    waits = Waits()
    await pulled(server, tmp_path, sleep=waits)
    assert waits.seconds == list(BACKOFF_S[:3])


async def test_a_hub_that_is_gone_is_given_up(tmp_path: Path) -> None:
    with HubServer(FILES) as server:
        pass
    waits = Waits()
    with pytest.raises(httpx.TransportError):
        await pulled(server, tmp_path, sleep=waits)
    assert waits.seconds == list(BACKOFF_S)


async def test_files_at_a_time_are_bounded(tmp_path: Path) -> None:
    files = {f"part/{index}.safetensors": os.urandom(20_000) for index in range(24)}
    with HubServer(files) as server:
        await pulled(server, tmp_path)
        assert server.most_at_once <= AT_ONCE
        assert content(tmp_path) == files


@pytest.mark.parametrize("path", ["../evil.json", "a/../../evil.json", "a\\b.json", "a/./b.json"])
async def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with (
        HubServer({"model_index.json": b"{}", path: b"{}"}) as server,
        pytest.raises(HubError, match="lists a file that is called"),
    ):
        await pulled(server, tmp_path / "in")
    assert content(tmp_path) == {"in/.genfleet-pull.lock": b""}


@pytest.mark.parametrize("path", ["/etc/evil.json", "a//b.json", ""])
async def test_a_path_that_is_none_is_left_out(tmp_path: Path, path: str) -> None:
    with HubServer({"model_index.json": b"{}", path: b"evil"}) as server:
        await pulled(server, tmp_path / "in")
    assert set(content(tmp_path / "in")) == {"model_index.json"}


async def test_a_folder_is_of_one_repository(server: HubServer, tmp_path: Path) -> None:
    await pulled(server, tmp_path)
    with pytest.raises(HubError, match="holds owner/model from huggingface"):
        await pulled(server, tmp_path, "modelscope")


async def test_a_repository_without_a_checkpoint(tmp_path: Path) -> None:
    with (
        HubServer({"README.md": b"nothing"}) as server,
        pytest.raises(HubError, match="nothing that a checkpoint is made of"),
    ):
        await pulled(server, tmp_path)


async def test_no_room_is_said_before_anything_is_fetched(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(HubError, match="bytes are to come, 1,000 are free"):
        await pulled(server, tmp_path)
    assert server.fetched() == []


async def test_a_manifest_names_what_has_changed(server: HubServer, tmp_path: Path) -> None:
    made = await pulled(server, tmp_path)
    weights = tmp_path / WEIGHTS
    weights.write_bytes(bytes(len(FILES[WEIGHTS])))
    (tmp_path / "model_index.json").write_bytes(b"{")
    (tmp_path / "LICENSE.txt").unlink()
    found = manifest.faults(tmp_path, made)
    assert [fault.partition(": ")[0] for fault in found] == [
        str(tmp_path / "LICENSE.txt"),
        str(tmp_path / "model_index.json"),
        str(weights),
    ]
    assert "SHA-256" in found[2]


def test_which_files_a_checkpoint_needs() -> None:
    for path in (
        "Wan2.1_VAE.pth",
        "Wan2.2_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "google/umt5-xxl/spiece.model",
        "high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors",
        "text_encoder/model.safetensors.index.json",
    ):
        assert needed(path), path
    for path in ("README.md", "assets/logo.png", "examples/i2v_input.JPG", ".gitattributes", "x.pth", "run.py"):
        assert not needed(path), path


def test_names_and_repositories() -> None:
    known = repositories.known()
    assert repositories.find("wan2.1-t2v-1.3b", "modelscope") == (
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan2.1-T2V-1.3B-Diffusers",
    )
    assert repositories.find("Owner/Some.Model", "modelers") == ("Owner/Some.Model", "Some.Model")
    for name in ("wan-9", "a/b/c", "../x", "a/..", "https://x/y"):
        with pytest.raises(repositories.UnknownRepository, match="neither OWNER/NAME nor one of"):
            repositories.find(name, "huggingface")
    with pytest.raises(repositories.UnknownRepository, match="not known to be at modelers, but at huggingface"):
        repositories.find(next(iter(known)), "modelers")


def test_where_checkpoints_are_looked_for(tmp_path: Path) -> None:
    settings = Settings(models_dir=str(tmp_path / "pulled"))
    found = repositories.search_path(settings, {"MODEL_CKPT_DIR": f"{tmp_path}/a:{tmp_path}/b"})
    assert found == [tmp_path / "a", tmp_path / "b", tmp_path / "pulled"]


def run_process(server: HubServer, folder: Path, *arguments: str) -> tuple[int, list[dict[str, object]]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")} | {
        "GENFLEET_MODELS_DIR": str(folder),
        "GENFLEET_MODELS_MIRROR": server.url + "/",
    }
    command = [sys.executable, "-m", "workers.hub", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_process_that_an_agent_runs(server: HubServer, tmp_path: Path) -> None:
    status, told = run_process(server, tmp_path, REPOSITORY, "--revision", COMMIT)
    assert (status, told[-1]) == (0, {"folder": str(tmp_path / "model")})
    assert all(0 <= line["fraction"] <= 1 for line in told[:-1])  # type: ignore[operator]
    assert is_complete(tmp_path / "model", COMMIT)
    server.requests.clear()
    assert run_process(server, tmp_path, REPOSITORY, "--revision", COMMIT)[0] == 0
    assert server.requests == []
    status, told = run_process(server, tmp_path, REPOSITORY, "--revision", "v9")
    assert status == 1
    assert "not found" in str(told[-1]["error"])
