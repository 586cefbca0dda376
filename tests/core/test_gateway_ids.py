"""Ids of jobs: by time, and never the same twice, however many are made from what the system drew at once."""

from __future__ import annotations

import subprocess
import sys

from gateway import ids


def test_fresh_ids_are_ids_and_none_comes_twice() -> None:
    made = [ids.fresh(1_700_000_000.0) for _ in range(5_000)]
    assert len({name[12:] for name in made}) == len(made)
    assert all(ids.parse(name) == name for name in made)
    assert {name[:12] for name in made} == {f"{1_700_000_000_000:012x}"}


def test_fresh_ids_order_by_time() -> None:
    assert ids.fresh(1_700_000_000.0) < ids.fresh(1_700_000_000.001) < ids.fresh(1_800_000_000.0)


def test_a_forked_process_gives_out_other_ids_than_its_parent() -> None:
    """Both have the bytes that were drawn before."""
    script = (
        "import os, sys\n"
        "from gateway import ids\n"
        "ids._random.take(10)\n"
        "child = os.fork()\n"
        "os.write(1, ids._random.take(10).hex().encode() + b'\\n')\n"
        "if child: os.waitpid(child, 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    one, other = found.stdout.split()
    assert one != other
