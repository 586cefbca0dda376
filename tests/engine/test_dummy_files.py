"""What the dummy engine leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from PIL import Image

from shared.messages import decode
from workers.engine.dummy_files import write_output
from workers.link import Run

RUN = Path(__file__).parents[1] / "golden" / "frame.run.json"


@pytest.mark.parametrize(("still", "name"), [("png", "1.png"), ("jpeg", "1.jpg"), ("webp", "1.webp"), ("mp4", "1.png")])
def test_a_picture_is_of_the_format_that_is_asked_for(tmp_path: Path, still: str, name: str) -> None:
    run = decode(RUN.read_bytes(), Run)
    request = replace(run.request, task="text-to-image", output_format=still, output_quality=None)
    file = write_output(replace(run, request=request, out_dir=str(tmp_path)), 1, -1)
    with Image.open(tmp_path / name) as picture:
        assert (file.name, file.media_type) == (name, picture.get_format_mimetype())
        assert (file.width, file.height) == picture.size
