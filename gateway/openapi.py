"""The OpenAPI document."""

from __future__ import annotations

import msgspec


def document(version: str) -> bytes:
    """The document as JSON."""
    return msgspec.json.encode({"openapi": "3.1.0", "info": {"title": "genfleet", "version": version}, "paths": {}})
