"""Kill everything in random order under load, and see whether a promise breaks.

    python -m tests.faults.chaos --jobs 2000 --kills 60 --seconds 120 --seed 1

Two gateways, two schedulers, several dummy pools and one broker, all real processes without a supervisor, are killed,
stopped and cut off from the broker while clients submit through both gateways. Then all is put right, every accepted
job must end and its webhook must have been told so, and the history checker and the clients say what is wrong. A failed
run keeps its folder and prints the command that runs the same plan again. Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path

import cyclopts
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from deploy.history.check import Snapshot, check
from deploy.history.reading import last_values, read, read_submits
from shared import topology
from shared.artifacts import open_store
from shared.bus import Bus
from shared.errors import GenfleetError
from shared.nats_bus import connect
from shared.settings import Settings
from shared.telemetry import configure
from tests.faults import plan
from tests.faults.clients import Clients, broken_by
from tests.faults.fleet import BareFleet
from tests.faults.hearer import Hearer
from tests.faults.witness import Witness

#: After everything was put right, for all clients to be answered and all jobs to end.
HEAL_S = 600.0
#: After the last job has ended, for its result to be folded away, and for deletions that a killed gateway left to be
#: finished by the leader, which gives it a minute.
TIDY_S = 150.0
#: To read all that is left behind.
READ_S = 60.0
#: Broken promises printed; all are in ``report.json``.
SHOWN = 30


class Report(Struct, frozen=True, kw_only=True):
    """What a run was and what came of it. ``broken`` is empty when every promise was kept."""

    seed: int
    seconds: float
    took_s: float
    jobs: int
    accepted: int
    states: dict[str, int]
    kills: dict[str, int]
    other_blows: dict[str, int]
    deleted: int
    retried: int
    requests: dict[str, int]
    requeued: dict[str, int]
    archived: int
    most_epochs: int
    webhooks: int
    webhooks_repeated: int
    streams: int
    streams_resumed: int
    revisions_seen: int
    warnings: int
    lost: int
    double: int
    settled_s: float
    broken: tuple[str, ...]


async def chaos(folder: Path, *, jobs: int, kills: int, seconds: float, seed: int, pools: int = 4) -> Report:
    """One run in that folder; never raises because a promise was broken."""
    began = time.monotonic()
    load, blows = plan.jobs(seed, jobs, seconds), plan.faults(seed, kills, seconds)
    ledger = folder / "submits.jsonl"
    broken: list[str] = []
    async with Hearer() as hearer, BareFleet(folder, pools=pools) as fleet:
        await fleet.ready()
        bus = await connect(fleet.settings, name="witness")
        witness, clients = Witness(bus), Clients(fleet.urls, ledger, seed, hearer.url)
        watching = asyncio.create_task(witness.watch())
        using = asyncio.create_task(clients.use(load))
        try:
            broken += await _strike(fleet, blows, seconds)
            fleet.heal()
            healed = time.monotonic()
            broken += await _settle(using, clients, witness)
            settled_s = time.monotonic() - healed
            broken += await _tidy(bus)
            with suppress(TimeoutError):
                async with asyncio.timeout(TIDY_S):
                    await hearer.all_of(clients.accepted.values())
            snapshot = Snapshot()
            try:
                async with asyncio.timeout(READ_S):
                    snapshot = await read(bus, open_store(fleet.settings.artifacts), contents=True)
            except (TimeoutError, GenfleetError) as error:
                broken.append(f"promise 8: what is left behind cannot be read: {error!r}")
        finally:
            using.cancel()
            watching.cancel()
            ends = await asyncio.gather(using, watching, return_exceptions=True)
            await bus.close()
        broken += [f"the harness itself failed: {end!r}" for end in ends if isinstance(end, Exception)]
    found = [*witness.found, *check(snapshot, read_submits(ledger), at_rest=True)]
    records = snapshot.by_id()
    broken += [str(finding) for finding in found if finding.broken]
    broken += [*broken_by(clients, load, records), *fleet.faults_found]
    broken += hearer.wrong(clients.accepted.values(), records)
    left = {stored.key for stored in snapshot.files if stored.key.split("/")[0] in clients.deleted}
    broken += [f"promise 1: {key} is a file of a deleted job" for key in sorted(left)]
    requeued = Counter(
        str(entry.reason)
        for record in records.values()
        for entry in record.transitions
        if entry.state == "queued" and entry.index > 0
    )
    return Report(
        seed=seed,
        seconds=seconds,
        took_s=round(time.monotonic() - began, 1),
        jobs=jobs,
        accepted=len(set(clients.accepted.values())),
        states=dict(Counter(str(record.state) for record in records.values())),
        kills={str(target): number for (target, blow), number in fleet.struck.items() if blow is plan.Blow.KILL},
        other_blows={
            f"{target} {blow}": number for (target, blow), number in fleet.struck.items() if blow is not plan.Blow.KILL
        },
        deleted=len(clients.deleted),
        retried=sum(job.key in clients.accepted for job in clients.again),
        requests=dict(clients.counts),
        requeued=dict(requeued),
        archived=len(snapshot.archived),
        most_epochs=max((record.epoch for record in records.values()), default=0),
        webhooks=len(hearer.heard),
        webhooks_repeated=hearer.repeated,
        streams=len(clients.streams),
        streams_resumed=sum(stream.resumed for stream in clients.streams),
        revisions_seen=witness.revisions,
        warnings=sum(not finding.broken for finding in found),
        lost=sum(finding.kind in ("lost", "open_at_rest", "file_missing") for finding in found),
        double=sum(finding.kind in ("second_end", "two_jobs_for_one_key", "rewritten") for finding in found),
        settled_s=round(settled_s, 1),
        broken=tuple(broken),
    )


async def _strike(fleet: BareFleet, blows: tuple[plan.Fault, ...], seconds: float) -> list[str]:
    """Let the blows fall, each in its time; takes ``seconds`` at least."""
    began = time.monotonic()
    for number, blow in enumerate(blows, 1):
        await asyncio.sleep(max(0.0, began + blow.at_s - time.monotonic()))
        what = f"{number}/{len(blows)}  {blow.blow} {blow.target}"
        try:
            await fleet.strike(blow)
        except TimeoutError:
            return [f"blow {what}: there was nothing to hit, it did not come back from an earlier one"]
        print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr)
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
    return []


async def _settle(using: asyncio.Task[None], clients: Clients, witness: Witness) -> list[str]:
    """Every client is answered and every accepted job ends, within the bound."""
    try:
        async with asyncio.timeout(HEAL_S):
            await asyncio.shield(using)
            await witness.ended(set(clients.accepted.values()))
    except TimeoutError:
        left = witness.open(set(clients.accepted.values()))[:SHOWN]
        left = [f"{job} is {witness.records[job].state if job in witness.records else 'lost'}" for job in left]
        waiting = "" if using.done() else "clients still wait; "
        return [f"promise 8: not at rest {HEAL_S:.0f} s after everything was put right: {waiting}{', '.join(left)}"]
    return []


async def _tidy(bus: Bus) -> list[str]:
    """Results are folded away and deletions finished, within the bound."""
    left = ["not read"]
    with suppress(TimeoutError, GenfleetError):
        async with asyncio.timeout(TIDY_S):
            while left:
                await asyncio.sleep(0.2)
                left = [entry.key for entry in await last_values(bus, topology.RESULTS.name) if entry.value is not None]
                tombstones = await last_values(bus, topology.DELETED.name)
                left += [
                    entry.key for entry in tombstones if entry.key.startswith("pending.") and entry.value is not None
                ]
            return []
    return [f"not folded or deleted {TIDY_S:.0f} s after the last job's end: {', '.join(left)[:300]}"]


async def _keys(bus: Bus, bucket: str) -> list[str]:
    return [entry.key for entry in await last_values(bus, bucket) if entry.value is not None]


def main(
    *,
    jobs: int = 2000,
    kills: int = 60,
    seconds: float = 120.0,
    seed: int = 1,
    pools: int = 4,
    folder: Path | None = None,
) -> int:
    """Kill everything in random order under load; exit 1 when a promise was broken.

    Args:
        jobs: how many are submitted.
        kills: how many SIGKILLs; a third as many other blows come on top.
        seconds: over which jobs and kills are spread.
        seed: draws the plan; the same seed, the same plan.
        pools: dummy pools, one agent and one rank each.
        folder: where everything is kept, and stays; otherwise a temporary one, which stays when a promise was broken.
    """
    place = folder or Path(tempfile.mkdtemp(prefix="genfleet-chaos-"))
    place.mkdir(parents=True, exist_ok=True)
    print(f"everything is in {place}", file=sys.stderr)
    configure("harness", Settings(log_level="error"))
    again = replay(jobs=jobs, kills=kills, seconds=seconds, seed=seed, pools=pools)
    print(f"again: {again}", file=sys.stderr)
    report = asyncio.run(_until_told(chaos(place, jobs=jobs, kills=kills, seconds=seconds, seed=seed, pools=pools)))
    (place / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    print(msgspec.json.format(msgspec.json.encode(replace(report, broken=())), indent=2).decode())
    if report.broken:
        for sentence in report.broken[:SHOWN]:
            print(sentence)
        print(f"{len(report.broken)} broken; everything is in {place}; again:\n{again}")
        return 1
    if folder is None:
        shutil.rmtree(place)
    return 0


async def _until_told(run: Coroutine[None, None, Report]) -> Report:
    """SIGTERM ends the run as Ctrl-C does, with nothing left running."""
    task = asyncio.ensure_future(run)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def replay(*, jobs: int, kills: int, seconds: float, seed: int, pools: int) -> str:
    """The command that runs the same plan again."""
    words = {"--jobs": jobs, "--kills": kills, "--seconds": seconds, "--seed": seed, "--pools": pools}
    given = " ".join(f"{name} {value}" for name, value in words.items())
    return f"python -m tests.faults.chaos {given}"


if __name__ == "__main__":
    app = cyclopts.App(name="python -m tests.faults.chaos", help_format="plaintext", result_action="return_value")
    app.default(main)
    sys.exit(app())
