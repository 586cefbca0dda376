"""Private folders for attempts' files. One that is empty again is kept for the next attempt: making and removing two
folders costs more than all else that an agent does for a job of a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


class Folders:
    """The folders of one agent, below one that is its own."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent.absolute()
        self._free: list[Path] = []
        self._made = 0

    def take(self) -> Path:
        """A folder that holds nothing but the empty folder ``out``.

        Raises:
            OSError: it cannot be made.
        """
        if self._free:
            return self._free.pop()
        self._made += 1
        folder = self._parent / f"job-{self._made}"
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        (folder / "out").mkdir()
        return folder

    async def give_back(self, folder: Path, files: Iterable[str]) -> None:
        """The attempt is over, and nobody writes there any more.

        Args:
            files: what is known to lie in ``out``; names of files, no paths.
        """
        out = f"{folder}/out"
        try:
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # it has been moved into the store
                    os.unlink(f"{out}/{name}")
            if os.listdir(out) == [] and os.listdir(folder) == ["out"]:
                self._free.append(folder)
                return
        except OSError:
            pass  # whatever is in the way goes with the folder
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
