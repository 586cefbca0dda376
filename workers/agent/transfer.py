"""Inputs in, outputs out: between the artifact store and an attempt's private folder.

A store that fails is tried again for as long as the caller lets it; what is wrong with the job itself is not.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from shared.artifacts import Stored
from shared.clock import Clock
from shared.errors import ArtifactError, ArtifactNotFound, ArtifactRefused, GenfleetError, InvalidKey
from shared.messages import Assign, Input, JobRequest, Output
from shared.moderation import Moderation, NoJudgement
from shared.telemetry import log
from shared.topology import output_key
from workers.agent.downloads import BadInput, Downloads
from workers.agent.granted import JobFiles
from workers.link import OutputFile

#: Seconds between tries at a store that fails, doubling up to the second.
RETRY_S = (0.25, 8.0)
_NAME = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,127}")

_log = log(__name__)
T = TypeVar("T")


class BadOutput(GenfleetError):
    """The engine named a file that it did not leave in its output folder."""


async def fetch_inputs(
    artifacts: JobFiles, downloads: Downloads, request: JobRequest, folder: Path, clock: Clock
) -> dict[str, str]:
    """The job's inputs as files of frames in ``folder``: paths by the names of ``JobRequest.inputs``.

    Raises:
        BadInput: one is missing or differs from its size or SHA-256, cannot be had from its URL, or cannot be decoded.
        IntakeDown: nothing can be decoded here.
    """

    async def one(name: str, given: Input) -> tuple[str, str]:
        path = folder / f"{name}.input"
        await _fetch(artifacts, downloads, name, given, path, clock)
        return name, str(await downloads.decode(request, name, path))

    fetching = [asyncio.ensure_future(one(name, given)) for name, given in request.inputs().items()]
    try:
        return dict(await asyncio.gather(*fetching))
    finally:
        # After one that fails, the others must not go on in a folder that is taken away.
        for each in fetching:
            each.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)


async def _fetch(artifacts: JobFiles, downloads: Downloads, name: str, given: Input, path: Path, clock: Clock) -> None:
    if given.url:
        await downloads.fetch(given.url, name, path)
        return
    try:
        size = await _persist(lambda: artifacts.fetch_file(given.key, path), clock)
    except (ArtifactNotFound, InvalidKey) as error:
        raise BadInput(f"{name}: no such file in the store") from error
    if size != given.size:
        raise BadInput(f"{name}: {size} bytes in the store, {given.size} in the job")
    if await asyncio.to_thread(_sha256, path) != given.sha256:
        raise BadInput(f"{name}: its content is not that of the job (SHA-256)")


async def judge_outputs(
    moderation: Moderation, assign: Assign, files: tuple[OutputFile, ...], folder: Path, clock: Clock
) -> None:
    """Ask the operator's judge about each of the engine's files, for as long as it takes it to answer.

    Raises:
        Denied: it does not allow one.
        BadOutput: a name is not that of a regular file in ``folder``.
    """
    if not moderation.asks:
        return
    for index, file in enumerate(files):
        about = {
            "Job": assign.job,
            "Epoch": str(assign.epoch),
            "Tenant": assign.tenant,
            "Model": assign.request.model,
            "Task": assign.request.task,
            "Output": str(index),
        }
        path = _left(folder, file.name)
        wait, longest = RETRY_S
        while True:
            try:
                await moderation.output(about, file.media_type, path)
                break
            except NoJudgement as error:
                _log.warning("moderation_unreachable", error=str(error), retry_s=wait)
            await clock.sleep(wait)
            wait = min(2 * wait, longest)


async def store_outputs(
    artifacts: JobFiles, job: str, epoch: int, files: tuple[OutputFile, ...], folder: Path, clock: Clock
) -> tuple[Output, ...]:
    """Put the engine's files under ``<job>/<epoch>/``, one after another; references to them, in the same order.

    Raises:
        BadOutput: a name is not that of a regular file in ``folder``.
        ArtifactRefused: the store does not take one.
    """

    async def put(name: str) -> Stored:
        path = _left(folder, name)
        key = output_key(job, epoch, name)
        return await _persist(lambda: artifacts.take_file(key, path), clock)

    outputs = []
    for file in files:
        stored = await put(file.name)
        thumbnail = (await put(file.thumbnail)).key if file.thumbnail else ""
        spritesheet = (await put(file.spritesheet)).key if file.spritesheet else ""
        outputs.append(
            Output(
                key=stored.key,
                media_type=file.media_type,
                size=stored.size,
                sha256=stored.sha256,
                width=file.width,
                height=file.height,
                num_frames=file.num_frames,
                fps=file.fps,
                thumbnail=thumbnail,
                spritesheet=spritesheet,
            )
        )
    return tuple(outputs)


def _left(folder: Path, name: str) -> Path:
    """The path of a file that the engine left there."""
    path = folder / name
    if not _NAME.fullmatch(name) or not _is_regular(path):
        raise BadOutput(f"no such output file: {name[:80]!r}")
    return path


async def _persist(transfer: Callable[[], Awaitable[T]], clock: Clock) -> T:
    wait, longest = RETRY_S
    while True:
        try:
            return await transfer()
        except (ArtifactNotFound, ArtifactRefused):
            raise
        except ArtifactError as error:
            _log.warning("artifact_store_failed", error=str(error), retry_s=wait)
        await clock.sleep(wait)
        wait = min(2 * wait, longest)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
