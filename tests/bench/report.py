"""How a benchmark says what it found: a Markdown page with method, machine and table, and a plot beside it."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


def machine() -> str:
    """The machine in words: no names, only what bears on speed."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    return statistics.median(values), min(values), max(values)


def bracketed(values: Sequence[float], form: str) -> str:
    """Median (least to most)."""
    middle, low, high = spread(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def load() -> str:
    """What else the machine did of late."""
    return "load average of the machine at the end: " + ", ".join(f"{value:.1f}" for value in os.getloadavg())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, title: str, method: str, body: str) -> Path:
    """Write ``docs/benchmarks/<name>.md`` and print it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    day = datetime.now(UTC).date().isoformat()
    text = f"# {title}\n\n{method.strip()}\n\nMachine: {machine()}. Date: {day}.\n\n{body.strip()}\n"
    path = FOLDER / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    return path
