"""Fleets that the system tests share: starting one costs seconds, so each width is started once and serves all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet

QUICK = {"GENFLEET_LEASE_S": "3"}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker whose group has two ranks, serving the demo model."""
    folder: Path = tmp_path_factory.mktemp("pair") / "data"
    with Fleet(folder, "--group-size", "2", "--device", "cpu", env=QUICK) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker whose group has one rank, serving the demo model."""
    folder: Path = tmp_path_factory.mktemp("single") / "data"
    with Fleet(folder, "--group-size", "1", "--device", "cpu", env=QUICK) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def dummies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers of the dummy engine: what is tested is everything but the engine."""
    folder: Path = tmp_path_factory.mktemp("dummies") / "data"
    with Fleet(folder, "--workers", "2", "--model", "dummy", env=QUICK) as fleet:
        yield fleet
