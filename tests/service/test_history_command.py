"""``python -m deploy.history`` over a real broker: the exit status and the words that an operator gets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared import topology
from shared.artifacts import open_store
from shared.messages import JobRecord, encode
from shared.nats_bus import connect
from shared.settings import Settings
from tests.core.histories import queued, running, succeeded
from tests.support.fleet import ROOT
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.system

BOUND_S = 60.0


async def leave(settings: Settings, folder: Path, *records: JobRecord) -> None:
    """The records, and a file for each output, of five bytes as they say."""
    async with asyncio.timeout(BOUND_S):
        bus = await connect(settings, name="fleet")
    for record in records:
        await bus.bucket(topology.JOBS.name).create(record.id, encode(record))
        for output in record.outputs:
            await open_store(str(folder)).put(output.key, b"hello")
    await bus.close()


def said(settings: Settings, folder: Path, *options: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GENFLEET_")}
    command = [sys.executable, "-m", "deploy.history", "--nats-url", settings.nats_url, "--artifacts", str(folder)]
    done = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env={**kept, "GENFLEET_NATS_TOKEN": settings.nats_token},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def test_it_says_what_is_broken(nats_server: NatsServer, tmp_path: Path) -> None:
    settings, folder = nats_server.settings(), tmp_path / "artifacts"
    await leave(settings, folder, succeeded(), running(queued("b")))
    ledger = tmp_path / "submits"
    ledger.write_text("".join(json.dumps({"id": job, "key": job, "time": 1.0}) + "\n" for job in "ab"))

    code, text = await asyncio.to_thread(said, settings, folder, "--submits", str(ledger))
    assert (code, "0 broken, 0 warnings" in text) == (0, True), text
    assert "1 running, 1 succeeded; accepted submits: 2; files: 1" in text

    code, text = await asyncio.to_thread(said, settings, folder, "--at-rest", "--contents")
    assert code == 1, text
    assert "broken: promise 1: open_at_rest: b: still running at epoch 1" in text
    assert "broken: promise 1: file_differs: a: " in text

    ledger.write_text('{"id": "c"}\n')
    code, text = await asyncio.to_thread(said, settings, folder, "--submits", str(ledger))
    assert (code, "broken: promise 1: lost: c: " in text) == (1, True), text
