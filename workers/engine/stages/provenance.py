"""What a file says of its own origin: that a model made it, which one, by what numbers, for which job.

Two ways, for two kinds of readers: a JSON text where players and picture viewers show a comment, and XMP, where
catalogues and detectors look for IPTC's digital source type (https://cv.iptc.org/newscodes/digitalsourcetype/). In an
mp4 the XMP is a box of its own at the file's end (XMP specification, part 3: ``uuid`` BE7ACFCB-97A9-42E8-9C71-
999491E3AFAC); in a PNG it is the ``iTXt`` chunk ``XML:com.adobe.xmp``.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import UUID
from xml.sax.saxutils import escape

from msgspec import Struct

from shared.messages import JobRequest

_XMP_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
_MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class Provenance(Struct, frozen=True):
    """``comment``: one JSON object. ``xmp``: a packet."""

    comment: str
    xmp: str


@cache
def software() -> str:
    """This software and its version."""
    try:
        return f"genfleet {version('genfleet')}"
    except PackageNotFoundError:
        return "genfleet"


def provenance(level: str, job: str, request: JobRequest) -> Provenance | None:
    """What the files of that job are to say, None for nothing.

    Args:
        level: ``off``; ``parameters``: all but the prompts, which are their author's; ``full``: these too. A word of a
            newer agent is read as ``parameters``.
    """
    if level == "off":
        return None
    said: dict[str, object] = {
        "software": software(),
        "job": job,
        "model": request.model,
        "task": request.task,
        "seed": request.seed,
        "size": f"{request.width}x{request.height}",
        "num_frames": request.num_frames,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "shift": request.shift,
        "solver": request.solver,
    }
    if request.num_frames > 1:
        said["fps"] = request.fps
    if request.loras:
        said["loras"] = {lora.name: lora.weight for lora in request.loras}
    if level == "full":
        said["prompt"] = request.prompt
        if request.negative_prompt:
            said["negative_prompt"] = request.negative_prompt
    comment = json.dumps(said, ensure_ascii=False)
    return Provenance(comment, _xmp(comment))


def _xmp(comment: str) -> str:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<xmp:CreatorTool>{escape(software())}</xmp:CreatorTool>"
        f"<Iptc4xmpExt:DigitalSourceType>{_MADE_BY_A_MODEL}</Iptc4xmpExt:DigitalSourceType>"
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(comment)}</rdf:li></rdf:Alt></dc:description>'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def append_xmp(path: Path, xmp: str) -> None:
    """Add the packet to a complete mp4, as its last box: nothing that is there moves."""
    data = xmp.encode()
    with path.open("ab") as file:
        file.write((8 + len(_XMP_BOX) + len(data)).to_bytes(4) + b"uuid" + _XMP_BOX + data)
