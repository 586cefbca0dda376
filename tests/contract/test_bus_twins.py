"""The bus in memory answers any run of calls exactly as the real one does: tests on it are tests of the truth."""

from __future__ import annotations

import random

import pytest

from shared.bus import Bucket
from shared.errors import BusError
from tests.support.bus_world import MemoryWorld, NatsWorld, Reader, World
from tests.support.nats_server import NatsServer

KEYS = ("a", "b", "a.b", "c.d.e", "only_x=-1")


async def outcome(bucket: Bucket, dice: random.Random, revisions: list[int]) -> object:
    """One call, drawn, and what came of it."""
    key, value = dice.choice(KEYS), str(dice.random()).encode()
    revision = dice.choice([*revisions[-6:], 0, revisions[-1] + 1])
    call = dice.choice(("get", "create", "update", "update", "put", "delete", "delete if", "purge", "usage"))
    result: object = None
    try:
        match call:
            case "get":
                entry = await bucket.get(key)
                result = entry and (entry.key, entry.value, entry.revision)
            case "create":
                result = await bucket.create(key, value)
            case "update":
                result = await bucket.update(key, value, revision)
            case "put":
                result = await bucket.put(key, value)
            case "delete":
                result = await bucket.delete(key)
            case "delete if":
                result = await bucket.delete(key, revision)
            case "purge":
                await bucket.purge(key)
            case "usage":
                result = (await bucket.usage())[0]
    except BusError as error:
        result = type(error).__name__
    if isinstance(result, int) and call != "usage":
        revisions.append(result)
    return call, key, revision, result


async def played(world: World, seed: int) -> tuple[list[object], list[object]]:
    """The outcomes of a run, and what a follower from cold finds at its end."""
    dice, revisions = random.Random(seed), [0]
    bucket = (await world.connect()).bucket("kept")
    outcomes = [await outcome(bucket, dice, revisions) for _ in range(400)]
    reader = Reader(world, bucket)
    await reader.until(lambda r: r.caught_up)
    found: list[object] = [(entry.key, entry.value, entry.revision) for entry in reader.entries]
    await reader.close()
    return outcomes, found


@pytest.mark.parametrize("seed", range(5))
async def test_both_answer_alike(nats_server: NatsServer, seed: int) -> None:
    real, memory = NatsWorld(nats_server), MemoryWorld()
    wanted, got = await played(real, seed), await played(memory, seed)
    assert got == wanted
    assert len({str(result) for result in wanted[0]}) > 100
    for world in (real, memory):
        await world.close()
