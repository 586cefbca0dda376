"""``python -m tests.simulation``: one seed, many, or for hours. What fails comes with the command that replays it.

python -m tests.simulation --seed 7 --log     one run, and what happened in it
python -m tests.simulation sweep --seeds 40   seeds 0 to 39
python -m tests.simulation soak --minutes 60  fresh seeds until the time is up
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.run import MIXES, STEPS, Outcome, simulate


def sweep(seeds: Iterable[int], steps: int, minutes: float, mixes: tuple[str, ...], failures: int = 5) -> int:
    """Run the seeds, with the mixes in turn, until the time is up or so many have failed; how many did."""
    began, broken, runs = time.monotonic(), 0, 0
    totals: Counter[str] = Counter()
    for seed in seeds:
        if time.monotonic() - began > minutes * 60 or broken >= failures:
            break
        outcome = simulate(seed, steps, mix=mixes[runs % len(mixes)])
        runs += 1
        _count(totals, outcome)
        if outcome.broken:
            broken += 1
            print(outcome, flush=True)
    ends = ", ".join(f"{count} {state}" for state, count in sorted(totals.items()) if state not in ("writes", "s"))
    print(
        f"{runs} seeds, {broken} broken; jobs: {ends}; {totals['writes']} writes; "
        f"{totals['s'] / 3600:.1f} h of made-up time in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return broken


def _count(totals: Counter[str], outcome: Outcome) -> None:
    totals.update(outcome.states)
    totals["writes"] += outcome.writes
    totals["s"] += int(outcome.seconds)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--mix", choices=MIXES, default="all", help="what happens how often")
    parser.add_argument("--log", action="store_true", help="print what happens, log lines included")
    commands = parser.add_subparsers(dest="command")
    many = commands.add_parser("sweep", help="many seeds")
    many.add_argument("--seeds", type=int, default=40)
    many.add_argument("--first", type=int, default=0)
    many.add_argument("--minutes", type=float, default=60.0)
    soak = commands.add_parser("soak", help="fresh seeds until the time is up")
    soak.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    match given.command:
        case "sweep":
            seeds = range(given.first, given.first + given.seeds)
            return 1 if sweep(seeds, given.steps, given.minutes, (given.mix,)) else 0
        case "soak":
            # Longer runs as well: some states are reached only after many faults.
            fresh = itertools.count(int(time.time()) * 1000)
            return 1 if sweep(fresh, 3 * given.steps, given.minutes, tuple(MIXES)) else 0
    lines: list[str] | None = [] if given.log else None
    outcome = simulate(given.seed, given.steps, lines, given.mix)
    for line in lines or ():
        print(line)
    print(outcome)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
