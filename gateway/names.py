"""What names look like that come in URLs and bodies. Pure."""

from __future__ import annotations

import re

TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
WORKER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
