"""The command: everything that is wrong with the fleet of some settings, for people."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

import msgspec
from msgspec.structs import replace

from deploy.history.check import Finding, check
from deploy.history.reading import read, read_submits
from shared.errors import BusUnavailable, GenfleetError
from shared.nats_bus import connect
from shared.settings import Settings, load
from shared.stores import open_artifacts
from shared.telemetry import configure

#: Bounds on connecting, and on reading everything.
CONNECT_S = 10.0
READ_S = 900.0


async def report(settings: Settings, submits: Path | None, *, at_rest: bool, contents: bool) -> list[Finding]:
    """Everything that is wrong with the fleet of those settings. Raises as ``read`` and ``read_submits``."""
    promised = read_submits(submits) if submits else []
    configure("check", replace(settings, log_level="error"))  # what the bus has to say is for services
    try:
        async with asyncio.timeout(CONNECT_S):
            bus = await connect(settings, name="history")
    except TimeoutError as error:
        raise BusUnavailable(f"no broker that takes us answers at {settings.nats_url}") from error
    try:
        async with asyncio.timeout(READ_S):
            snapshot = await read(bus, open_artifacts(settings), contents=contents)
    finally:
        await bus.close()
    found = check(snapshot, promised, at_rest=at_rest)
    states = Counter(record.state for record in snapshot.by_id().values())
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    print(f"jobs: {counted}; accepted submits: {len(promised)}; files: {len(snapshot.files)}", file=sys.stderr)
    return found


def main(
    *,
    nats_url: str | None = None,
    artifacts: str | None = None,
    submits: Path | None = None,
    at_rest: bool = False,
    contents: bool = False,
) -> int:
    """Say which promise is broken, if any, judged from the job records, the results and the stored files.

    Args:
        nats_url: the broker's address.
        artifacts: the artifact store: a folder or s3://bucket/prefix.
        submits: JSON lines {"id", "key", "time"}, one for each accepted submit whose job is not past its retention;
            "cancelled": true or "deleted": true says that so much was answered too.
        at_rest: every job should have ended.
        contents: read every output and compare its SHA-256.
    """
    try:
        settings = load()
        settings = replace(settings, nats_url=nats_url or settings.nats_url, artifacts=artifacts or settings.artifacts)
        found = asyncio.run(report(settings, submits, at_rest=at_rest, contents=contents))
    except (GenfleetError, OSError, TimeoutError, msgspec.MsgspecError) as error:
        print(f"could not find out: {error or type(error).__name__}", file=sys.stderr)
        return 2
    for finding in found:
        print(finding)
    broken = sum(finding.broken for finding in found)
    print(f"{broken} broken, {len(found) - broken} warnings")
    return 1 if broken else 0
