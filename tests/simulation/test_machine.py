"""The same fleet driven by Hypothesis, which looks for a short history that breaks a promise and then shortens it.

Some 45 seconds of one core, the same histories at every run; ``SIMULATION_EXAMPLES`` and ``SIMULATION_DEPTH`` make it
longer than CI has time for.
"""

from __future__ import annotations

import asyncio
import os
from random import Random

from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.simulation.faults import PRETENCES, Chaos
from tests.simulation.fleet import Fleet
from tests.simulation.quiet import Quiet
from tests.simulation.run import settle

EXAMPLES = int(os.environ.get("SIMULATION_EXAMPLES", "30"))
DEPTH = int(os.environ.get("SIMULATION_DEPTH", "25"))
#: What a failure tells whoever wants to see it again.
REPLAY = f"SIMULATION_EXAMPLES={EXAMPLES} SIMULATION_DEPTH={DEPTH} python -m pytest tests/simulation/test_machine.py"
#: What may happen besides submits, cancels and the passing of time.
FAULTS = (
    "kill",
    "kill_at_a_write",
    "kill_group",
    "slow_group",
    "stop_worker",
    "pause",
    "cut",
    "restart_broker",
    "pause_broker",
    "turn_weather",
    "jump_wall_clock",
    "jump_broker_clock",
    "fail_store",
    "without_schedulers",
    "hold",
    "release",
    "drain",
    "resume",
    "limit",
)


class FleetUnderFaults(RuleBasedStateMachine):
    """Clients and faults in any order, then everything heals."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = Quiet()
        self.fleet: Fleet | None = None

    @initialize(seed=st.integers(0, 2**16), schedulers=st.integers(1, 2), started_s=st.sampled_from((0.0, 5.0)))
    def begin(self, seed: int, schedulers: int, started_s: float) -> None:
        note(f"replay: {REPLAY}")
        self.quiet.__enter__()
        self.fleet = Fleet(f"machine-{seed}", schedulers=schedulers)
        self.quiet.witness = self.fleet.witness
        self.chaos = Chaos(self.fleet, Random(f"{seed}/chaos"))
        self.fleet.do(asyncio.sleep(started_s))

    @rule(pretence=st.sampled_from(PRETENCES), count=st.integers(1, 4))
    def submit(self, pretence: dict[str, float | str], count: int) -> None:
        assert self.fleet is not None

        async def act() -> None:
            for _ in range(count):
                self.chaos.submit(dict(pretence))

        self.fleet.do(act())

    @rule(what=st.sampled_from(("cancel", "reprioritise", "delete", "retry")))
    def change(self, what: str) -> None:
        self._act(what)

    @rule(what=st.sampled_from(FAULTS))
    def fault(self, what: str) -> None:
        self._act(what)

    def _act(self, what: str) -> None:
        assert self.fleet is not None

        async def act() -> None:
            getattr(self.chaos, what)()

        self.fleet.do(act())

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.1, 0.5, 2.0, 7.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        assert self.fleet is not None
        self.fleet.do(asyncio.sleep(seconds))

    @invariant()
    def promises_hold(self) -> None:
        if self.fleet is not None:
            self.fleet.check()

    def teardown(self) -> None:
        if self.fleet is None:
            return
        try:
            self.fleet.do(settle(self.fleet, self.chaos))
        finally:
            self.fleet.close()
            self.quiet.__exit__(None, None, None)


TestFleetUnderFaults = FleetUnderFaults.TestCase
TestFleetUnderFaults.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=DEPTH,
    deadline=None,
    derandomize=True,
    database=None,
    # Shortening a failure takes many runs: by hand, with SIMULATION_SHRINK=1.
    phases=tuple(Phase) if os.environ.get("SIMULATION_SHRINK") else (Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
