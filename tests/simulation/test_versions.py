"""A rolling deploy: some processes write as an older version does, or as a newer one, and all the others go on."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from deploy.history.check import Submit
from gateway.problems import Problem
from gateway.schema.requests import SubmitBody
from shared.errors import InvalidRequest
from shared.messages import JobRecord, State, decode, encode
from tests.core.histories import succeeded
from tests.simulation.faults import Chaos
from tests.simulation.fleet import Fleet
from tests.simulation.quiet import Quiet
from tests.simulation.run import settle
from tests.simulation.versions import Version, newer, older

ROLES = ("gateway", "scheduler", "worker")
#: What jobs do, and how they end.
PRETENCES: tuple[tuple[dict[str, float | str], State], ...] = (
    ({}, State.SUCCEEDED),
    ({}, State.SUCCEEDED),
    ({"fail": "engine_error", "fail_at": 1}, State.FAILED),
    ({"refuse": "input_rejected"}, State.FAILED),
    ({"kill_at": 1}, State.FAILED),
)


def speak(fleet: Fleet, roles: tuple[str, ...], version: Version) -> None:
    for slot in fleet.slots:
        if slot.name.split("-")[0] in roles:
            slot.bus.version = version


@pytest.mark.parametrize("version", [older, newer], ids=["older", "newer"])
@pytest.mark.parametrize("roles", [("gateway",), ("scheduler",), ("worker",), ROLES], ids="-".join)
def test_versions_understand_each_other(roles: tuple[str, ...], version: Version) -> None:
    """Row 34: the real services; every kind of message goes through the process that writes otherwise."""
    with Quiet() as quiet:
        fleet = Fleet("versions")
        quiet.witness = fleet.witness
        try:
            speak(fleet, roles, version)
            made = fleet.do(_use(fleet))
            ends = [fleet.witness.records[job].state for job in made]
            assert ends == [*(state for _, state in PRETENCES), State.CANCELLED]
        finally:
            fleet.close()


async def _use(fleet: Fleet) -> list[str]:
    """The jobs that were made, in the order of the pretences; the last is one that is cancelled while it runs."""
    witness = fleet.witness
    made = [await _submit(fleet, number, pretence) for number, (pretence, _) in enumerate(PRETENCES)]
    slow = await _submit(fleet, len(PRETENCES), {"steps": 6, "step_ms": 5000})
    gateway = fleet.gateways[0]

    def goes_on() -> bool:
        progress = gateway.live.progress_of(witness.records[slow])
        return progress is not None and 1 <= progress.step < progress.total_steps == 6

    assert await fleet.until(goes_on, 600.0), "progress is understood too"
    assert (await gateway.process.ask(gateway.changes.cancel(slow, "ada"))).state is State.CANCELLING
    await settle(fleet, Chaos(fleet, Random("versions")))
    return [*made, slow]


async def _submit(fleet: Fleet, number: int, pretence: dict[str, float | str]) -> str:
    """Through one gateway and the other in turn, as soon as a pool has announced the model."""
    body = SubmitBody(prompt=f"job {number}", model="dummy", seed=number, max_attempts=2, dummy=dict(pretence))
    while True:
        try:
            record = await fleet.gateways[number % 2].submit("ada", f"key-{number}", body)
        except (InvalidRequest, Problem, AttributeError):
            await asyncio.sleep(0.5)
            continue
        fleet.witness.accepted[record.id] = Submit(id=record.id, key=f"key-{number}", tenant="ada")
        return record.id


def test_an_older_message_lacks_what_is_at_its_default_and_a_newer_one_has_more() -> None:
    record = encode(succeeded())
    assert decode(older(record), JobRecord) == decode(record, JobRecord) == decode(newer(record), JobRecord)
    assert len(older(record)) < len(record) < len(newer(record))
    assert newer(record).count(b"from_the_future") > len(succeeded().transitions)
    assert older(b"") == newer(b"") == b""
    assert older(b"user") == newer(b"user") == b"user"
