"""Pools of two machines, both of which are this one."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from workers import pool as pools
from workers.agent.process import free_port
from workers.pool import Pool


def pool_of(model: Path | str, **changes: object) -> Pool:
    """A pool of 2 + 2 ranks on the loopback."""
    values: dict[str, object] = {"width": 4, "nodes": 2, "device": "cpu", "serve_as": "tiny", "threads": 1}
    pool = Pool(model=str(model), rendezvous=f"127.0.0.1:{free_port()}", **values)  # type: ignore[arg-type]
    return replace(pool, **changes)


def write(pool: Pool, path: Path) -> Path:
    fields = msgspec.to_builtins(pool)
    lines = [f"{name} = {fields[name]!r}".replace("'", '"') for name in ("model", "device", "serve_as", "rendezvous")]
    lines += [f"{name} = {fields[name]}" for name in ("width", "nodes", "threads")]
    path.write_text("\n".join(lines))
    assert pools.read(path) == pool
    return path
