"""Every call of a library's functions in some files, found by reading them: which function, and how it is called."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct


class Call(Struct, frozen=True):
    """One call: ``torch_npu.npu.empty_cache()`` is the name ``torch_npu.npu.empty_cache``; a keyword's value does not
    matter, nor do positional arguments', only how many there are. ``starred``: there are ``*`` or ``**`` arguments."""

    where: str
    name: str
    positional: int
    keywords: tuple[str, ...]
    starred: bool


def calls(files: Iterable[Path], libraries: tuple[str, ...]) -> list[Call]:
    """The calls of functions whose dotted name begins with one of the libraries' names."""
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (name := _dotted(node.func)) and _belongs(name, libraries):
                starred = any(isinstance(argument, ast.Starred) for argument in node.args)
                keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
                starred |= len(keywords) < len(node.keywords)
                found.append(Call(f"{file.name}:{node.lineno}", name, len(node.args), keywords, starred))
    return found


def names(files: Iterable[Path], libraries: tuple[str, ...]) -> set[str]:
    """Every dotted name that begins with one of the libraries' names, called or not; of a chain only the longest."""
    found: set[str] = set()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                name = _dotted(node)
                if name and _belongs(name, libraries):
                    found.add(name)
    return found


def _belongs(name: str, libraries: tuple[str, ...]) -> bool:
    return any(name.startswith(library + ".") for library in libraries)


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` of a chain of attributes; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
