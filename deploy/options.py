"""What the commands share: exit codes, options that are settings, and how JSON is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from deploy.client import Gateway
from shared.settings import Settings, load, variable

OK, FAILED, USAGE, UNREACHABLE, LEFT = 0, 1, 2, 3, 130


def setting(name: str, text: str) -> Parameter:
    """An option that is a setting: its help names its default and its variable."""
    default = getattr(Settings(), name)
    shown = f"default {default}, " if default not in ("", None) else ""
    return Parameter(name="--" + name.replace("_", "-"), help=f"{text} [{shown}{variable(name)}]")


Url = Annotated[str | None, setting("url", "Where the gateway is.")]
JsonFlag = Annotated[bool, Parameter(name="--json", help="Print the gateway's JSON on stdout.")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"], help="Wait for the end and save the result there.")]


def settings_from(**options: object) -> Settings:
    """The settings, with the options that were given on the command line (not None) over all others."""
    return load(options={name: value for name, value in options.items() if value is not None})


def gateway_at(url: str | None) -> Gateway:
    """The gateway that the options and the settings name, with the key that is shown there."""
    settings = settings_from(url=url)
    return Gateway(settings.url, settings.key)


def print_json(data: bytes) -> None:
    """On stdout, indented."""
    print(msgspec.json.format(data, indent=2).decode())
