"""The promises' page: every test that it names exists, and says of itself which promise or row it is for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "promises.md"
PROMISES = {1, 2, 3, 4, 5, 6, 7, 8}
ROWS = {*range(1, 17), 18, 21, 22, 23, 24, 25, *range(27, 39)}


def lines() -> Iterator[tuple[str, int, list[str]]]:
    """(``promise`` or ``row``, its number, the tests named) of each line of the page's tables."""
    kind = ""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] in ("promise", "row"):
            kind = cells[0]
        elif line.startswith("|") and cells[0].isdigit():
            yield kind, int(cells[0]), re.findall(r"`(tests/[^`]+)`", cells[-1])


@cache
def docstrings(file: str) -> dict[str, str]:
    """What each function of the file says of itself, the file's own words included."""
    tree = ast.parse((ROOT / file).read_text())
    about = ast.get_docstring(tree) or ""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: f"{about}\n{ast.get_docstring(node) or ''}" for node in functions}


def numbers(kind: str, text: str) -> set[int]:
    """The numbers after "row", "rows", "promise" or "promises"."""
    found = re.findall(rf"\b{kind}s? (\d+(?:(?:, | and | to )\d+)*)", text, re.IGNORECASE)
    return {int(number) for run in found for number in re.findall(r"\d+", run)}


CASES = [(kind, number, test) for kind, number, tests in lines() for test in tests]


@pytest.mark.parametrize(
    ("kind", "number", "test"), CASES, ids=[f"{kind} {number} {test}" for kind, number, test in CASES]
)
def test_a_named_test_exists_and_names_what_it_is_for(kind: str, number: int, test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).is_file(), test
    said = docstrings(file)
    assert name in said, f"there is no {test}"
    assert number in numbers(kind, said[name]), f"{test} does not say that it is for {kind} {number}"


def test_every_promise_and_row_has_a_test() -> None:
    with_tests = {(kind, number) for kind, number, tests in lines() if tests}
    assert with_tests >= {("promise", number) for number in PROMISES} | {("row", number) for number in ROWS}


def test_numbers_are_read_as_they_are_written() -> None:
    text = "Rows 9, 30, 36 and 37: and row 3. Promise 1 holds; Promises 2 and 4."
    assert numbers("row", text) == {9, 30, 36, 37, 3}
    assert numbers("promise", text) == {1, 2, 4}
