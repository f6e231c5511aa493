"""The header of a GGUF file: metadata by key, and where each tensor lies. Read as the words of a stranger, without a tensor library.

    "GGUF" | u32 version | u64 tensors | u64 keys | keys: string, type, value | tensors: string, u32 dims, u64 sizes, type, offset | data

Little-endian, versions 2 and 3. A string is u64 length and bytes. Sizes begin with the one that lies side by side (columns). Offsets
count from the first multiple of `general.alignment` behind the header. No number of the file makes anything be allocated before it was
held against the bytes that the file has.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivers.errors import ModelCorrupt, ModelUnsupported

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies take 10 MiB
MAX_DEPTH = 4  # dimensions of a tensor
CHUNK_BYTES = 1 << 20
STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
ARRAY_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "B", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20

Value = int | float | bool | str | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header tells of it."""

    name: str
    shape: tuple[int, ...]  # rows first, columns last
    type_id: int
    offset: int  # from the start of the data


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A header that was read and holds together; what the types of tensors mean is for others to check."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    alignment: int
    file_bytes: int

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises: ModelCorrupt."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number. Raises: ModelCorrupt."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises: ModelCorrupt."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Raises: ModelCorrupt."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def texts(self, key: str) -> list[str]:
        """Strings. Raises: ModelCorrupt."""
        value = self._value(key, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return [str(item) for item in value]

    def numbers(self, key: str) -> list[float]:
        """Numbers; nothing where they are missing. Raises: ModelCorrupt."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or any(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of numbers")
        return [float(item) for item in value]

    def wrong(self, key: str, needed: str) -> ModelCorrupt:
        """The error that names a key and what it has to be."""
        value = repr(self.metadata.get(key))
        return ModelCorrupt(f"{self.path.name}: {key} is {value[:100]}; it has to be {needed}.")

    def _value(self, key: str, default: Value | None) -> Value:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelCorrupt(f"{self.path.name}: {key} is missing.")
        return value


def find_gguf(path: Path) -> Path | None:
    """The file of a GGUF model: the path itself, or the one in that directory; None if it is no such model. Raises: ModelUnsupported."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if (path / "config.json").is_file() or not path.is_dir():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise ModelUnsupported(f"{path} holds several GGUF files ({names}); name one of them.")
    return found[0] if found else None


def read_gguf(path: Path) -> GgufHeader:
    """Read a header. Raises: ModelCorrupt, ModelUnsupported."""
    try:
        with path.open("rb", buffering=0) as file:
            return _read(path, _Reader(path.name, file.fileno()))
    except OSError as error:
        raise ModelCorrupt(f"{path.name} cannot be read: {error.strerror}.") from error


def _read(path: Path, reader: _Reader) -> GgufHeader:
    if reader.take(4) != MAGIC:
        raise ModelCorrupt(f"{path.name} does not begin with GGUF.")
    version = reader.number("I")
    if version not in VERSIONS:
        raise ModelUnsupported(f"{path.name} is GGUF of version {version}; supported are 2 and 3, little-endian.")
    num_tensors, num_keys = reader.count("tensors", 24), reader.count("keys", 13)
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = reader.text()
        if key in metadata:
            raise ModelCorrupt(f"{path.name} has {key[:100]} twice.")
        metadata[key] = reader.value(reader.number("I"))
    tensors = tuple(_tensor(reader) for _ in range(num_tensors))
    if len({tensor.name for tensor in tensors}) != num_tensors:
        raise ModelCorrupt(f"{path.name} has two tensors of one name.")
    header = GgufHeader(path, metadata, tensors, 0, 0, reader.file_bytes)
    alignment = header.integer("general.alignment", DEFAULT_ALIGNMENT)
    if not 0 < alignment <= MAX_ALIGNMENT or alignment % 8:
        raise header.wrong("general.alignment", f"a multiple of 8 up to {MAX_ALIGNMENT}")
    data_start = -(-reader.position // alignment) * alignment
    for tensor in tensors:
        if tensor.offset % alignment:
            raise ModelCorrupt(f"{path.name}: {tensor.name} begins at {tensor.offset}, which is no multiple of {alignment}.")
    return GgufHeader(path, metadata, tensors, data_start, alignment, reader.file_bytes)


def _tensor(reader: _Reader) -> TensorInfo:
    name, depth = reader.text(), reader.number("I")
    if not 1 <= depth <= MAX_DEPTH:
        raise ModelCorrupt(f"{reader.name}: {name[:100]} has {depth} dimensions; there are 1 to {MAX_DEPTH}.")
    sizes = tuple(int(reader.number("Q")) for _ in range(depth))
    if any(not 0 < size < 1 << 40 for size in sizes):
        raise ModelCorrupt(f"{reader.name}: {name[:100]} has sizes {sizes}.")
    return TensorInfo(name, sizes[::-1], int(reader.number("I")), int(reader.number("Q")))


class _Reader:
    """The bytes of a header, one value after the other, read from the file as they are needed."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.file_bytes = os.fstat(descriptor).st_size
        self.position = 0  # in the file
        self._descriptor = descriptor
        self._buffer = b""
        self._start = 0  # of the buffer in the file

    def take(self, size: int) -> bytes:
        """The next bytes. Raises: ModelCorrupt, if the file ends before."""
        self._check(size)
        begin = self.position - self._start
        if begin + size > len(self._buffer):
            self._buffer = os.pread(self._descriptor, max(size, CHUNK_BYTES), self.position)
            self._start, begin = self.position, 0
            if len(self._buffer) < size:
                raise ModelCorrupt(f"{self.name} became shorter while it was read.")
        self.position += size
        return self._buffer[begin : begin + size]

    def number(self, code: str) -> int:
        """One number."""
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))
        return value  # type: ignore[no-any-return]

    def count(self, what: str, least_bytes: int) -> int:
        """How many of something follow, which take so many bytes each at least. Raises: ModelCorrupt, if the file has not as many."""
        found = self.number("Q")
        if found > (self.file_bytes - self.position) // least_bytes:
            raise ModelCorrupt(f"{self.name} says that it has {found} {what}; the file has {self.file_bytes} bytes.")
        return found

    def text(self) -> str:
        """A string. Raises: ModelCorrupt, if it is not UTF-8."""
        try:
            return self.take(self.count("bytes in a string", 1)).decode()
        except UnicodeDecodeError as error:
            raise ModelCorrupt(f"{self.name} has a string that is not UTF-8.") from error

    def value(self, type_id: int) -> Value:
        """A value of metadata. Raises: ModelCorrupt, if there is no such type."""
        if type_id == STRING:
            return self.text()
        if type_id == ARRAY:
            return self._array()
        if type_id not in NUMBERS:
            raise ModelCorrupt(f"{self.name} has metadata of type {type_id}, which there is not.")
        return self.number(NUMBERS[type_id])

    def _array(self) -> list[str] | list[int] | list[float]:
        type_id = self.number("I")
        if type_id == STRING:
            return [self.text() for _ in range(self.count("strings", 8))]
        if type_id not in ARRAY_CODES:
            raise ModelCorrupt(f"{self.name} has a list of type {type_id}; there are lists of numbers and of strings.")
        values = array(ARRAY_CODES[type_id])
        values.frombytes(self.take(self.count("numbers", values.itemsize) * values.itemsize))
        return values.tolist()

    def _check(self, size: int) -> None:
        if self.position + size > self.file_bytes:
            raise ModelCorrupt(f"{self.name} has {self.file_bytes} bytes and ends within its header.")
        if self.position + size > MAX_HEADER_BYTES:
            raise ModelUnsupported(f"{self.name} has a header of more than {MAX_HEADER_BYTES} bytes.")
