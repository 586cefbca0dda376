"""What a ``.pth`` file holds, read without torch and without running anything that the file says.

torch writes a zip archive (``<name>/data.pkl``, and one uncompressed record per storage) since 1.6; before that, and on
request since, a row of pickles (magic number, protocol, system, the object, the storages' keys) followed by the
storages, each with 8 bytes of length before it. Only what a plain ``dict`` of tensors needs is unpickled.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from workers.engine.checkpoint import TensorInfo
from workers.engine.errors import CannotLoad

_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_PICKLE_BYTES = 64 * 1024 * 1024
#: torch's storage classes: the word of safetensors headers and bytes per element.
_STORAGES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "BFloat16Storage": ("BF16", 2),
    "HalfStorage": ("F16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}


class _Kind(NamedTuple):
    dtype: str
    itemsize: int


class _Storage(NamedTuple):
    kind: _Kind
    key: str
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def header(file: Path) -> dict[str, TensorInfo]:
    """The tensors that a ``.pth`` file holds, after checking that the file is as long as they need.

    ``data_offsets`` count within the tensor's own storage.

    Raises:
        CannotLoad: the file is missing, truncated, or no plain ``dict`` of tensors.
    """
    try:
        with file.open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
        found = _in_archive(file) if zipped else _in_sequence(file)
    except OSError as error:
        raise CannotLoad(f"{file}: missing or unreadable: {error.strerror}") from error
    if not isinstance(found, dict):
        raise CannotLoad(f"{file}: holds a {type(found).__name__}, not tensors by name")
    infos: dict[str, TensorInfo] = {}
    for name, tensor in found.items():
        if not isinstance(tensor, _Tensor) or not isinstance(name, str):
            raise CannotLoad(f"{file}: {str(name)[:80]!r} is no tensor")
        kind = tensor.storage.kind
        start = tensor.offset * kind.itemsize
        length = kind.itemsize
        for side in tensor.shape:
            length *= side
        if start + length > tensor.storage.length * kind.itemsize:
            raise CannotLoad(f"{file}: damaged: tensor {name} is longer than its storage")
        infos[name] = TensorInfo(kind.dtype, tensor.shape, (start, start + length))
    return infos


def is_mappable(file: Path) -> bool:
    """Whether torch can map the file into memory instead of reading all of it: the archives."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _in_archive(file: Path) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {record.filename: record.file_size for record in archive.infolist()}
            name = next((name for name in sizes if name.rpartition("/")[2] == "data.pkl"), None)
            if name is None or sizes[name] > _MAX_PICKLE_BYTES:
                raise CannotLoad(f"{file}: an archive, but none of torch's")
            reader = _Reader(io.BytesIO(archive.read(name)), file)
            found = reader.load()
            folder = name.removesuffix("data.pkl")
            for storage in reader.storages.values():
                needed = storage.length * storage.kind.itemsize
                if sizes.get(f"{folder}data/{storage.key}") != needed:
                    raise CannotLoad(f"{file}: damaged: its storage {storage.key} is not {needed} bytes long")
            return found
    except (zipfile.BadZipFile, *_UNREADABLE) as error:
        raise CannotLoad(f"{file}: truncated, or not a file of torch's ({file.stat().st_size} bytes)") from error


def _in_sequence(file: Path) -> Any:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            if _Reader(stream, file).load() != _MAGIC:
                raise CannotLoad(f"{file}: not a file of torch's")
            for _ in ("protocol", "system"):
                _Reader(stream, file).load()
            reader = _Reader(stream, file)
            found = reader.load()
            keys = _Reader(stream, file).load()
            needed = stream.tell()
            needed += sum(8 + reader.storages[key].length * reader.storages[key].kind.itemsize for key in keys)
    except _UNREADABLE as error:
        raise CannotLoad(f"{file}: truncated, or not a file of torch's ({size} bytes)") from error
    if size != needed:
        raise CannotLoad(f"{file}: truncated: {size} bytes of {needed}")
    return found


#: What a damaged pickle can raise, of itself or out of the few calls that it may make.
_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    UnicodeDecodeError,
    OverflowError,
    MemoryError,
)


class _Reader(pickle.Unpickler):
    """Knows tensors, their storages and ordered dicts, and nothing else: a pickle cannot make it call anything."""

    def __init__(self, stream: Any, file: Path) -> None:
        super().__init__(stream)
        self._file = file
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Kind(*_STORAGES[name])
        raise CannotLoad(f"{self._file}: holds {module}.{name}: not a plain file of tensors, and not to be trusted")

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, length = pid[:5]
        storage = self.storages[str(key)] = _Storage(kind, str(key), int(length))
        return storage


def _tensor(storage: _Storage, offset: int, shape: Any, *_: object) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(int(side) for side in shape))


def _parameter(data: _Tensor, *_: object) -> _Tensor:
    return data
