"""Which conditioner a checkpoint has."""

from __future__ import annotations

from typing import assert_never

from workers.engine.families.wan_conditions.base import Conditioner, Eyes
from workers.engine.families.wan_conditions.control import Control
from workers.engine.families.wan_conditions.first_frame import FirstFrame
from workers.engine.families.wan_conditions.image_channels import ImageChannels
from workers.engine.families.wan_conditions.text import Text


def conditioner(eyes: Eyes) -> Conditioner:
    """The one for the checkpoint that these eyes belong to."""
    kind = eyes.checkpoint.conditioning
    match kind:
        case "text":
            return Text(eyes)
        case "image_channels":
            return ImageChannels(eyes)
        case "first_frame":
            return FirstFrame(eyes)
        case "control":
            return Control(eyes)
        case _:
            assert_never(kind)
