"""A tensor of a checkpoint under the name that the model knows it by, whatever files and numbers it is made of.

Formats of quantized checkpoints (`drivers.models.quant`, `drivers.models.gguf`) each have a class that is a `Stored`; `PlainTensor` is that
of floats, one behind the other in a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from drivers.errors import ModelUnsupported
from drivers.models.parts import rows_of
from drivers.models.shards import Shards, StoredTensor
from drivers.models.storage import Kind, Storage
from drivers.models.tiles import NUMPY, Tile

FLOAT_KINDS = {"F32": Kind.FLOAT32, "BF16": Kind.BFLOAT16, "F16": Kind.FLOAT16}


class Stored(Protocol):
    """One tensor. Rows are counted as `drivers.models.parts` does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As the model uses it: `[rows, columns]` of a linear, whatever way round the file has it."""

    @property
    def form(self) -> Storage:
        """What its tiles are: floats, or integers with scales for so many columns, with offsets or without."""

    @property
    def source(self) -> tuple[str, int]:
        """File and first byte: disks like to be read in order."""

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together, with whole multiples of them; 0: only all together."""

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end). Any thread may. Raises: ModelCorrupt."""


@dataclass(frozen=True, slots=True)
class PlainTensor:
    """Floats, row by row."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As in the file."""
        return self.stored.shape

    @property
    def form(self) -> Storage:
        """Floats of the stored kind."""
        return Storage(FLOAT_KINDS[self.stored.stored_dtype])

    @property
    def source(self) -> tuple[str, int]:
        """Where it begins."""
        return self.stored.file.name, self.stored.start

    @property
    def rows_at_once(self) -> int:
        """Any number."""
        return 1

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end) of a tensor; of a vector, values, one in a row. Raises: ModelCorrupt."""
        kind = self.form.kind
        row_bytes = self.stored.size_bytes // rows_of(self.shape)
        values = np.empty((end - first, row_bytes // np.dtype(NUMPY[kind]).itemsize), NUMPY[kind])
        shards.open(self.stored).read([values.reshape(-1).view(np.uint8).data], self.stored.start + first * row_bytes)
        return Tile(kind, values)


def check_floats(tensors: Iterable[StoredTensor]) -> None:
    """Whether tensors are floats, which is what they are without a word about their quantization. Raises: ModelUnsupported."""
    for tensor in tensors:
        if tensor.stored_dtype not in FLOAT_KINDS:
            supported = ", ".join(FLOAT_KINDS)
            raise ModelUnsupported(f"{tensor.file.name}: {tensor.name} is stored as {tensor.stored_dtype}; supported are {supported}.")
