"""Checkpoints in Wan's own layout: what their files are called, and how their tensors' names become those of diffusers'
and transformers' classes. Names and architectures as in the modules of the Wan2.1 and Wan2.2 repositories (Apache-2.0).
"""

from __future__ import annotations

from workers.engine.original.folder import is_original, part, transcribed

__all__ = ["is_original", "part", "transcribed"]
