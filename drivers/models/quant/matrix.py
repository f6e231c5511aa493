"""What the formats of quantized checkpoints have in common: their tensors by module, checked, and integers made into tiles."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.fields import Fields
from drivers.models.parts import rows_of
from drivers.models.shards import Shards, StoredTensor
from drivers.models.storage import GROUP_UNIT, Kind, Storage
from drivers.models.stored import FLOAT_KINDS
from drivers.models.tiles import NUMPY, Array, Tile, floats

KINDS_OF_BITS = {4: Kind.INT4, 8: Kind.INT8}
NUMPY_OF_STORED = {"I64": np.int64, "I32": np.int32, "I8": np.int8, "U8": np.uint8, "F8_E4M3": np.uint8}


@dataclass(frozen=True, slots=True)
class Module:
    """The tensors of one linear, by the last word of their names."""

    name: str
    tensors: Mapping[str, StoredTensor]

    def get(self, name: str, dtypes: Collection[str], shape: tuple[int, ...] | None = None) -> StoredTensor:
        """One of its tensors, of one of these dtypes and, where told, of this shape. Raises: ModelCorrupt, ModelUnsupported."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelCorrupt(f"The weights lack {self.name}.{name}.")
        if found.stored_dtype not in dtypes:
            raise ModelUnsupported(f"{found.name} is stored as {found.stored_dtype}; supported are {', '.join(dtypes)}.")
        if shape is not None and found.shape != shape:
            raise ModelCorrupt(f"{found.name} has shape {found.shape}; with the module's other tensors it has to be {shape}.")
        return found


def modules_of(tensors: Mapping[str, StoredTensor], mark: str) -> dict[str, Module]:
    """The modules that have a tensor whose last word is `mark`, with all of their tensors."""
    found = {name.removesuffix(f".{mark}"): {} for name in tensors if name.endswith(f".{mark}")}  # type: dict[str, dict[str, StoredTensor]]
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if module in found:
            found[module][last] = tensor
    return {name: Module(name, parts) for name, parts in found.items()}


def check_known(fields: Fields, known: Iterable[str]) -> None:
    """Whether a quantization says only what its reader knows. Raises: ModelUnsupported, naming the field."""
    names = set(known)
    for name in fields.values:
        if name not in names and fields.has(name):
            raise fields.unsupported(name, f"none: the fields that are understood are {', '.join(sorted(names))}")


def group_of(group_size: int, columns: int, name: str) -> int:
    """Columns that share a scale; -1 stands for all. Raises: ModelCorrupt, if there is no such group."""
    if columns < 1:
        raise ModelCorrupt(f"{name} has no columns.")
    if group_size == -1:
        return columns
    if group_size < 1:
        raise ModelCorrupt(f"group_size is {group_size}; it has to be -1, or columns of {name} that share a scale.")
    return group_size


def integer_form(bits: int, group: int, columns: int, has_offsets: bool) -> Storage:
    """The form of integers in groups; floats, where the arena has no such groups."""
    if group >= columns:
        return Storage(KINDS_OF_BITS[bits], 0, has_offsets)
    if columns % group or group % GROUP_UNIT:
        return Storage(Kind.FLOAT32)
    return Storage(KINDS_OF_BITS[bits], group, has_offsets)


def tile_of(form: Storage, integers: Array, scales: Array, zeros: Array, at: Array) -> Tile:
    """A tile of `form` of unsigned `integers [rows, columns]`, with scales, and zero points that are integers, `[rows, groups]`.

    Column k belongs to group `at[k]`: of integers, to `k // form.group`.
    """
    wide = scales.astype(np.float32)
    offsets = wide * zeros.astype(np.float32)
    if form.is_quantized:
        return Tile(form.kind, integers, scales, offsets if form.has_offsets else None, form.group)
    return Tile(Kind.FLOAT32, integers.astype(np.float32) * wide[:, at] - offsets[:, at])


def read_rows(shards: Shards, stored: StoredTensor, first: int = 0, end: int | None = None) -> Array:
    """Rows of a stored tensor as numbers; floats of 16 bits become float32. Any thread may. Raises: ModelCorrupt."""
    rows = rows_of(stored.shape) if stored.shape else 1
    end = rows if end is None else end
    row_bytes = stored.size_bytes // max(1, rows)
    kind = FLOAT_KINDS.get(stored.stored_dtype)
    dtype = NUMPY_OF_STORED[stored.stored_dtype] if kind is None else NUMPY[kind]
    values = np.empty((end - first, row_bytes // np.dtype(dtype).itemsize), dtype)
    shards.open(stored).read([values.reshape(-1).view(np.uint8).data], stored.start + first * row_bytes)
    return values if kind is None else floats(Tile(kind, values))


def nibbles(packed: Array) -> Array:
    """Bytes `[rows, n]` as two values each, the lower half first: `[rows, 2 n]`."""
    values = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=values[..., 0])
    np.right_shift(packed, 4, out=values[..., 1])
    return values.reshape(len(packed), -1)


def unpacked(words: Array, bits: int) -> Array:
    """32-bit words `[rows, n]` as unsigned values, the lowest bits first: `[rows, n * 32 / bits]`."""
    as_bytes = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    return as_bytes if bits == 8 else nibbles(as_bytes)
