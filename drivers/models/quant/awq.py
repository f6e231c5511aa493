"""AWQ, as its gemm kernels read it: 4 bits in groups along the inputs, packed with outputs side by side, in an order of their own.

    qweight [in, out / 8] int32         bits [4 i, 4 i + 4) of word j hold output 8 j + ORDER[i]
    qzeros  [groups, out / 8] int32     the same
    scales  [groups, out]

    w[n, k] = scales[g, n] * (q[n, k] - zero[g, n])

Source: AutoAWQ, `awq/modules/linear/gemm.py` (WQLinear_GEMM.from_linear) and `awq/utils/packing_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drivers.errors import ModelCorrupt
from drivers.models.fields import Fields
from drivers.models.quant.matrix import Module, check_known, group_of, integer_form, modules_of, read_rows, tile_of
from drivers.models.shards import Shards, StoredTensor
from drivers.models.storage import Storage
from drivers.models.stored import Stored
from drivers.models.tiles import Array, Tile

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4
PER_WORD = 8
SCALE_DTYPES = ("F16", "BF16", "F32")
MEANINGLESS = ("quant_method", "modules_to_not_convert", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "backend")


@dataclass(frozen=True, slots=True)
class AwqMatrix:
    """One linear."""

    tensors: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    form: Storage
    group: int

    @property
    def source(self) -> tuple[str, int]:
        """Where its integers begin."""
        return self.tensors["qweight"].file.name, self.tensors["qweight"].start

    @property
    def rows_at_once(self) -> int:
        """All: its rows are the columns of what is stored."""
        return 0

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read all, and give rows [first, end). Raises: ModelCorrupt."""
        integers = outputs_first(read_rows(shards, self.tensors["qweight"]))
        zeros = outputs_first(read_rows(shards, self.tensors["qzeros"]))
        scales = np.ascontiguousarray(read_rows(shards, self.tensors["scales"]).T)
        at = np.arange(self.shape[1]) // self.group
        return tile_of(self.form, integers, scales, zeros, at).part(first, end)


def outputs_first(words: Array) -> Array:
    """Packed words `[n, out / 8]` as values `[out, n]`."""
    turned = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], words.shape[0], 4)
    values = np.empty((words.shape[1], PER_WORD, words.shape[0]), np.uint8)
    for place, output in enumerate(ORDER):
        np.bitwise_and(turned[:, :, place // 2] >> (4 * (place % 2)), 15, out=values[:, output])
    return values.reshape(-1, words.shape[0])


def read_awq(fields: Fields, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Stored], str]:
    """The quantized matrices of a checkpoint by the names of their weights, and what they are. Raises: ModelUnsupported, ModelCorrupt."""
    check_known(fields, ("bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "format", *MEANINGLESS))
    bits, size = ("bits" if fields.has("bits") else "w_bit"), ("group_size" if fields.has("group_size") else "q_group_size")
    if fields.integer(bits) != BITS:
        raise fields.unsupported(bits, "4")
    group_size = fields.integer(size, low=-1)
    for name in ("version", "format"):
        if fields.text(name, "gemm").lower() != "gemm":
            raise fields.unsupported(name, "'gemm'")
    if not fields.flag("zero_point", True):
        raise fields.unsupported("zero_point", "true")
    matrices: dict[str, Stored] = {}
    for module in modules_of(tensors, "qweight").values():
        shape, group = _checked(module, group_size)
        matrices[f"{module.name}.weight"] = AwqMatrix(module.tensors, shape, integer_form(BITS, group, shape[1], True), group)
    return matrices, f"awq int4{f' in groups of {group_size}' if group_size > 0 else ''}"


def _checked(module: Module, group_size: int) -> tuple[tuple[int, int], int]:
    """Shape of a linear and columns of its groups, if its tensors fit each other. Raises: ModelCorrupt, ModelUnsupported."""
    qweight = module.get("qweight", ("I32",))
    if len(qweight.shape) != 2:
        raise ModelCorrupt(f"{qweight.name} has shape {qweight.shape}; it has to be two-dimensional.")
    columns, rows = qweight.shape[0], qweight.shape[1] * PER_WORD
    group = group_of(group_size, columns, qweight.name)
    groups = -(-columns // group)
    module.get("scales", SCALE_DTYPES, (groups, rows))
    module.get("qzeros", ("I32",), (groups, rows // PER_WORD))
    return (rows, columns), group
