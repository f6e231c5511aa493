"""The weights of a model on disk: safetensors files, checked and read.

A file is `u64 header length | JSON header | tensor bytes`, and the header is the whole truth about what follows. It is read as the words
of a stranger: every number is checked against the file before anything is read, so a truncated, overlapping or lying file is
`ModelCorrupt` with a sentence, not a crash. Nothing is ever unpickled.

Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.fields import Fields

MAX_HEADER_BYTES = 100 << 20  # the format's own limit
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: bytes [start, start + size_bytes) of `file`."""

    name: str
    file: Path
    stored_dtype: str  # one of ITEM_BYTES
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class Shard:
    """An open file of weights."""

    def __init__(self, path: Path) -> None:
        """Raises: ModelCorrupt."""
        self.name = path.name
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ModelCorrupt(f"{path.name} cannot be read: {error.strerror}.") from error

    def read(self, targets: list[memoryview], start: int) -> int:
        """Fill the targets one after the other from byte `start` on. Any thread may; returns the bytes read. Raises: ModelCorrupt."""
        left, done = list(targets), 0
        while left:
            try:
                count = os.preadv(self._file.fileno(), left, start + done)
            except OSError as error:
                raise ModelCorrupt(f"{self.name} cannot be read: {error.strerror}.") from error
            if not count:
                raise ModelCorrupt(f"{self.name} became shorter while it was read.")
            done += count
            while left and count >= left[0].nbytes:
                count -= left.pop(0).nbytes
            if count:
                left[0] = left[0][count:]
        return done

    def close(self) -> None:
        """Close the file. Nobody may read any more."""
        self._file.close()


class Shards:
    """The files of one load, each opened once."""

    def __init__(self) -> None:
        self._shards: dict[Path, Shard] = {}
        self._opening = threading.Lock()

    def open(self, stored: StoredTensor) -> Shard:
        """The file in which a tensor lies. Any thread may. Raises: ModelCorrupt."""
        with self._opening:
            if stored.file not in self._shards:
                self._shards[stored.file] = Shard(stored.file)
            return self._shards[stored.file]

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards.values():
            shard.close()


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory by name, checked. Raises: ModelUnsupported, ModelCorrupt."""
    index = directory / INDEX_FILE
    if (directory / SINGLE_FILE).is_file():
        return {tensor.name: tensor for tensor in read_header(directory / SINGLE_FILE)}
    if not index.is_file():
        raise _no_weights(directory)
    owners = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(owners.values())):
        if not (directory / shard).is_file():
            raise ModelCorrupt(f"{INDEX_FILE} names {shard}, which is not in the directory.")
        for tensor in read_header(directory / shard):
            if tensor.name in tensors:
                raise ModelCorrupt(f"{tensor.name} is in both {tensors[tensor.name].file.name} and {shard}.")
            tensors[tensor.name] = tensor
    for name, shard in owners.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelCorrupt(f"{INDEX_FILE} says that {name} is in {shard}, which does not hold it.")
    return tensors


def _no_weights(directory: Path) -> ModelCorrupt | ModelUnsupported:
    if any(next(directory.glob(pattern), None) for pattern in PICKLES):
        return ModelUnsupported(
            "The directory holds pickled weights only, and those can run code when they are read; "
            "convert them to safetensors (save_pretrained does) and try again."
        )
    return ModelCorrupt(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}.")


def _read_index(path: Path) -> dict[str, str]:
    weight_map = Fields.read(path).inner("weight_map")
    if weight_map is None or not weight_map.values:
        raise ModelCorrupt(f"{path.name} has no weight_map.")
    owners: dict[str, str] = {}
    for name, shard in weight_map.values.items():
        if not isinstance(shard, str) or shard != os.path.basename(shard) or not shard.endswith(".safetensors"):
            raise ModelCorrupt(f"{path.name}: {name} lies in {shard!r}; shards are safetensors files of the same directory.")
        owners[name] = shard
    return owners


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one safetensors file, in the order of their bytes. Raises: ModelCorrupt, ModelUnsupported."""
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelCorrupt(f"{path.name} has {file_bytes} bytes, too few for a safetensors header.")
            (header_bytes,) = struct.unpack("<Q", prefix)
            if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise ModelCorrupt(f"{path.name} says its header has {header_bytes} bytes; the file has {file_bytes}.")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise ModelCorrupt(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{path.name} has a header that is not valid JSON: {error}.") from error
    if not isinstance(header, dict):
        raise ModelCorrupt(f"{path.name} has a header that is not a JSON object.")
    header.pop("__metadata__", None)
    tensors = sorted((_stored(path, name, entry, 8 + header_bytes) for name, entry in header.items()), key=lambda tensor: tensor.start)
    _check_coverage(path, tensors, 8 + header_bytes, file_bytes)
    return tuple(tensors)


def _stored(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise ModelCorrupt(f"{path.name}: the entry of {name} is not an object.")
    stored_dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(stored_dtype, str):
        raise ModelCorrupt(f"{path.name}: {name} has no dtype.")
    if stored_dtype not in ITEM_BYTES:
        raise ModelUnsupported(f"{path.name}: {name} is stored as {stored_dtype}; supported are {', '.join(ITEM_BYTES)}.")
    if not _are_sizes(shape) or len(shape) > 8:
        raise ModelCorrupt(f"{path.name}: {name} has shape {shape!r}.")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelCorrupt(f"{path.name}: {name} has data_offsets {offsets!r}.")
    size_bytes = offsets[1] - offsets[0]
    if size_bytes != math.prod(shape) * ITEM_BYTES[stored_dtype]:
        raise ModelCorrupt(f"{path.name}: {name} has {size_bytes} bytes, which is not {stored_dtype} of shape {shape}.")
    return StoredTensor(name, path, stored_dtype, tuple(shape), data_start + offsets[0], size_bytes)


def _are_sizes(items: object) -> TypeGuard[list[int]]:
    return isinstance(items, list) and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62 for item in items)


def _check_coverage(path: Path, tensors: list[StoredTensor], data_start: int, file_bytes: int) -> None:
    """The tensors follow one another without gap or overlap up to the end of the file."""
    end = data_start
    for tensor in tensors:
        if tensor.start != end:
            problem = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise ModelCorrupt(f"{path.name}: {tensor.name} {problem}.")
        end = tensor.start + tensor.size_bytes
        if end > file_bytes:
            raise ModelCorrupt(f"{path.name}: {tensor.name} ends at byte {end}; the file has {file_bytes}, so it was cut short.")
    if end != file_bytes:
        raise ModelCorrupt(f"{path.name}: the tensors end at byte {end}; the file has {file_bytes}.")
