"""``python -m workers.engine.memory_table``: what each published model takes, in the table of docs/models.md."""

from __future__ import annotations

import sys

from workers.engine import footprints
from workers.engine.footprints import Sizes, Split
from workers.engine.model_sizes import PUBLISHED

_ITEM = 2
_GB = 1e9
#: Pixels and frames of the job that the table is for, by model; 1280 × 720 × 81 for the others.
_SHOWN = {
    "wan2.1-t2v-1.3b": (832, 480, 81),
    "wan2.1-vace-1.3b": (832, 480, 81),
    "wan2.1-i2v-14b-480p": (832, 480, 81),
    "wan2.2-ti2v-5b": (1280, 704, 121),
}


def table() -> str:
    """Markdown: a row per model and kind of sharding, a column per width; GB for each device."""
    lines = [
        "| model and job | sharded | 1 device | 2 | 4 | 8 |",
        "|---|---|---|---|---|---|",
    ]
    for name, sizes in PUBLISHED.items():
        width, height, frames = _SHOWN.get(name, (1280, 720, 81))
        for dit, t5, words in ((False, False, "nothing"), (False, True, "T5"), (True, True, "DiT, T5")):
            cells = [_cell(sizes, ranks, dit, t5, width * height, frames) for ranks in footprints.WIDTHS]
            what = f"`{name}`, {width}×{height}×{frames}" if not t5 else ""
            lines.append("| " + " | ".join((what, words, *cells)) + " |")
    return "\n".join(lines) + "\n"


def _cell(sizes: Sizes, width: int, dit_fsdp: bool, t5_fsdp: bool, pixels: int, frames: int) -> str:
    if width == 1 and (dit_fsdp or t5_fsdp):
        return ""
    split: Split = footprints.split_of(sizes, width, dit_fsdp=dit_fsdp, t5_fsdp=t5_fsdp)
    stays = footprints.weights(sizes, split, _ITEM) + footprints.RUNTIME
    adds = footprints.job(sizes, split, _ITEM, pixels, frames)
    return f"{stays / _GB:.0f} + {adds / _GB:.0f} = **{(stays + adds) / _GB:.0f}**"


if __name__ == "__main__":
    sys.stdout.write(table())
