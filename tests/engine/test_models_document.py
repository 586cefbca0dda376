"""docs/models.md says what is so: the families, their memory, and the example pools."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workers import pool_lora
from workers.engine import catalog, memory_table
from workers.pool import PoolError, parse
from workers.pool_lora import PoolLora

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_memory_table_is_what_the_formulas_give() -> None:
    assert memory_table.table() in TEXT


def test_what_it_refers_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    paths = re.findall(r"`((?:deploy|workers|tests)/[\w./-]+)`", TEXT)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", catalog.names())
def test_every_model_of_the_catalogue_has_a_row_with_its_defaults(name: str) -> None:
    entry = catalog.entry(name)
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| `{re.escape(entry.folder)}` \|.*$", TEXT, re.MULTILINE)
    card = entry.card
    assert ", ".join(card.tasks) in row
    assert f"{card.width.default}×{card.height.default}×{card.num_frames.default} at {card.fps.default} fps" in row
    assert f"{card.steps.default} steps" in row


def test_the_pools_that_it_names_are_those_that_there_are() -> None:
    section = TEXT.split("## A pool for")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9.-]+)`", row)}
    there = {file.stem for file in (ROOT / "deploy" / "pools").glob("*.toml")}
    assert named == there - {"demo", "dummy"}


def test_its_loras_are_a_pools() -> None:
    (block,) = re.findall(r"```toml\n(\[\[lora\]\].*?)```", TEXT, re.DOTALL)
    pool = parse('model = "m"\n' + block)
    assert pool_lora.offered(pool.lora) == ("film-grain", "four-steps")


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (("path = 'a'\nname = 'x/y'",), "name"),
        (("path = 'a'\nname = 'https://x'",), "name"),
        (("path = 'a'\nname = 'x'\nweight = 11",), "weight"),
        (("path = 'a'\nname = 'x'\nweight = 0",), "does nothing"),
        (("path = 'a'\nname = 'x'\nexpert = 'third'",), "expert"),
        (("path = 'a'\nname = 'x'", "path = 'b'\nname = 'x'"), "twice"),
        (("path = 'a'\nname = 'x'\nexpert = 'high'", "path = 'b'\nname = 'x'"), "twice"),
        (("path = 'a'\nname = 'x'\ndefault = true\nfixed = true",), "default"),
        (
            (
                "path = 'a'\nname = 'x'\nexpert = 'high'\ndefault = true",
                "path = 'b'\nname = 'x'\nexpert = 'low'",
            ),
            "both files",
        ),
    ],
)
def test_what_is_wrong_with_a_pools_loras_is_named(tables: tuple[str, ...], told: str) -> None:
    text = 'model = "m"\n' + "\n".join(f"[[lora]]\n{table}" for table in tables)
    with pytest.raises(PoolError, match=told):
        parse(text)


def test_what_goes_with_a_lora_and_what_does_not() -> None:
    lora = "[[lora]]\nname = 'x'\npath = 'a'\n"
    with pytest.raises(PoolError, match="dummy"):
        parse(f'model = "dummy"\n{lora}')
    with pytest.raises(PoolError, match="fixed"):
        parse(f'model = "m"\nquant = "int8"\n{lora}')
    assert parse(f'model = "m"\nquant = "int8"\n{lora}fixed = true').lora == (PoolLora(name="x", path="a", fixed=True),)
