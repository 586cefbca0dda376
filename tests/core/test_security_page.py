"""The security page: every test that it names exists, and one that stands in a row of the faults says so of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.core.test_promises import ROOT, docstrings, numbers

PAGE = ROOT / "docs" / "security.md"
#: Rows of the faults that are threats.
ROWS = {14, *range(17, 28), 39, 40, 41}
TESTS = re.compile(r"`(tests/[^`]+)`")


def lines() -> list[tuple[int | None, str]]:
    """(row, test) of each that the tables name; None for what stands in no row."""
    found: list[tuple[int | None, str]] = []
    for line in PAGE.read_text().splitlines():
        first = line.strip("|").split("|")[0].strip()
        row = int(first) if first.isdigit() else None
        if line.startswith("|"):
            found += [(row, test) for test in TESTS.findall(line)]
    return found


@pytest.mark.parametrize(("row", "test"), lines(), ids=[f"{row} {test}" for row, test in lines()])
def test_a_named_test_exists_and_names_its_row(row: int | None, test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).is_file(), test
    said = docstrings(file)
    assert name in said, f"there is no {test}"
    assert row is None or row in numbers("row", said[name]), f"{test} does not say that it is for row {row}"


def test_every_row_has_a_test() -> None:
    assert {row for row, _ in lines() if row is not None} >= ROWS


def test_what_it_refers_to_is_there() -> None:
    text = PAGE.read_text() + (ROOT / "docs" / "limits.md").read_text()
    for name in re.findall(r"`((?:gateway|shared|scheduler|workers|deploy)/[a-z_/]+\.py)`", text):
        assert (ROOT / name).is_file(), name
    assert Path(ROOT / "compose.yaml").is_file()
