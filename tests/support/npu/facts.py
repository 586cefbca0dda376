"""What torch_npu's wheel says of itself, read out of the file: ``python -m tests.support.npu.facts`` (``make npu``).

The wheel cannot be imported without CANN, so its shared library is searched for the schemas with which it registers
its operators, its Python files for the signatures of its functions, and its headers for the runtime's error codes.
What genfleet needs of that is kept in ``torch_npu.json``, with the wheel's version and hash, and compared with the
wheel; ``--write`` writes it anew. Only facts are kept, no code.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import torch
from msgspec import Struct

#: Pairs with the torch that is pinned.
VERSION = "2.13.0"
KEPT = Path(__file__).with_name("torch_npu.json")
CACHE = Path(__file__).resolve().parents[3] / ".tools" / "npu"
_PYTHON_TAG = "cp311"

#: Operators that an engine for these models may want.
_OPERATORS = re.compile(
    r"npu_(fusion_attention(_v2|_v3)?|quant_fusion_attention|prompt_flash_attention|fused_infer_attention_score(_v2)?"
    r"|rms_norm|add_rms_norm|rotary_mul|quant_matmul|dynamic_quant|weight_quant_batchmatmul|format_cast)"
)
_SCHEMA = re.compile(rb"(?:npu::)?(_?npu_[a-z0-9_]+)\([\x20-\x7e]*\) ?-> ?[\x20-\x7e]+")
_LIBRARY = "torch_npu/lib/libtorch_npu.so"
_CODES = "torch_npu/include/acl/error_codes/rt_error_codes.h"
_CODE = re.compile(r"#define\s+(ACL_ERROR_RT_\w+)\s+(\d+)")
#: What torch_npu's exceptions say when a device or a link is lost; looked for among the library's strings.
_WORDS = (
    "FORCE STOP",
    "UCE ERROR",
    "HBM MULTI BIT ECC ERROR",
    "SUSPECT MEM ERROR",
    "SUSPECT REMOTE ERROR",
    "HCCS LINK ERROR",
    "UB LINK ERROR",
    "HCCL OP RETRY FAILED",
    "NPU function error: ",
    "OPS function error: ",
    "HCCL function error: ",
    ", error code is ",
    "NPU out of memory. Tried to allocate ",
)
_FILES = {"torch_npu.npu": ("torch_npu/npu/__init__.py", "torch_npu/npu/memory.py", "torch_npu/npu/utils.py")}


class Facts(Struct, frozen=True, kw_only=True):
    """What is known of one wheel.

    Attributes:
        operators: by name, the schema; ``torch_npu.<name>`` calls it.
        functions: by dotted name, the signature as Python writes it.
        errors: the runtime's error codes, by name.
        words: parts of messages that the library has, of those that were looked for.
    """

    version: str
    wheel: str
    sha256: str
    operators: dict[str, str]
    functions: dict[str, str]
    errors: dict[str, int]
    words: tuple[str, ...]


def kept() -> Facts:
    """The facts that the repository holds."""
    return msgspec.json.decode(KEPT.read_bytes(), type=Facts)


def read(wheel: Path) -> Facts:
    """The facts of that wheel."""
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(_LIBRARY)
        exported = archive.read("torch_npu/utils/custom_ops.py").decode()
        functions: dict[str, str] = {}
        for module, files in _FILES.items():
            for file in files:
                if file in archive.namelist():
                    functions |= {f"{module}.{name}": text for name, text in _signatures(archive.read(file)).items()}
        codes = archive.read(_CODES).decode()
    return Facts(
        version=VERSION,
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        operators=_operators(library, exported),
        functions=dict(sorted(functions.items())),
        errors={name: int(code) for name, code in _CODE.findall(codes)},
        words=tuple(word for word in _WORDS if word.encode() in library),
    )


def _operators(library: bytes, exported: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for match in _SCHEMA.finditer(library):
        name = match.group(1).decode()
        # ``torch_npu.<name>`` exists only for what the package exports.
        if not _OPERATORS.fullmatch(name) or f"torch_npu.{name} = torch.ops.npu.{name}\n" not in exported:
            continue
        text = match.group().decode().removeprefix("npu::")
        try:
            schema = torch._C.parse_schema(f"npu::{text}")
        except RuntimeError:
            continue
        found.setdefault(name, str(schema).removeprefix("npu::"))
    return dict(sorted(found.items()))


def _signatures(source: bytes) -> dict[str, str]:
    tree = ast.parse(source)
    return {
        node.name: f"({ast.unparse(node.args)})"
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def fetch(into: Path) -> Path:
    """The wheel, downloaded by pip unless it is there."""
    wheels = sorted(into.glob(f"torch_npu-{VERSION}-{_PYTHON_TAG}-*x86_64.whl"))
    if not wheels:
        into.mkdir(parents=True, exist_ok=True)
        asked = [f"torch_npu=={VERSION}", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11"]
        platform = ["--platform", "manylinux_2_28_x86_64", "--dest", str(into)]
        subprocess.run([sys.executable, "-m", "pip", "download", *asked, *platform], check=True)
        wheels = sorted(into.glob(f"torch_npu-{VERSION}-{_PYTHON_TAG}-*x86_64.whl"))
    return wheels[0]


def main() -> int:
    """Fetch the wheel and compare, or with ``--write`` write, what it says."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.npu.facts")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    facts = read(fetch(CACHE))
    if arguments.write:
        KEPT.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
        return 0
    same = facts == kept()
    print(f"{KEPT.name} {'is what' if same else 'differs from what'} {facts.wheel} says")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
