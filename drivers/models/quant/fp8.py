"""FP8: floats of 8 bits (e4m3, without infinities) times scales of blocks, rows, or all; they become floats of the compute dtype.

weight           [out, in] F8_E4M3
weight_scale_inv [ceil(out / 128), ceil(in / 128)]       of `quant_method: fp8`, as DeepSeek and Qwen write it
weight_scale     [1], [out, 1] or of blocks              of compressed-tensors

w[n, k] = weight[n, k] * scale[n // block_rows, k // block_columns]      (whatever its name, the scale multiplies)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drivers.errors import ModelCorrupt
from drivers.models.fields import Fields
from drivers.models.quant.matrix import Module, check_known, modules_of, read_rows
from drivers.models.shards import Shards, StoredTensor
from drivers.models.storage import Kind, Storage
from drivers.models.stored import Stored
from drivers.models.tiles import Array, Tile

SCALE_DTYPES = ("F32", "BF16", "F16")
STORED = "F8_E4M3"
MEANINGLESS = ("quant_method", "modules_to_not_convert", "ignored_layers", "modules_to_convert", "dequantize", "activation_scheme")


def _values() -> Array:
    """What each of the 256 codes stands for: 4 bits of exponent with bias 7, 3 of fraction; S.1111.111 is not a number."""
    codes = np.arange(256)
    exponents, fractions = (codes >> 3) & 15, codes & 7
    normal = (1 + fractions / 8) * 2.0 ** (exponents - 7)
    sizes = np.where(exponents == 0, fractions / 8 * 2.0**-6, normal)
    sizes[(codes & 127) == 127] = np.nan
    answer: Array = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    return answer


E4M3 = _values()


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """One linear."""

    weight: StoredTensor
    scale: StoredTensor
    block: tuple[int, int]  # rows and columns that share a scale

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.weight.shape

    @property
    def form(self) -> Storage:
        """Floats."""
        return Storage(Kind.FLOAT32)

    @property
    def source(self) -> tuple[str, int]:
        """Where its values begin."""
        return self.weight.file.name, self.weight.start

    @property
    def rows_at_once(self) -> int:
        """Any number."""
        return 1

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end). Raises: ModelCorrupt."""
        values = E4M3[read_rows(shards, self.weight, first, end)]
        rows, columns = self.block
        scales = read_rows(shards, self.scale).reshape(-1, -(-self.shape[1] // columns))
        if not np.isfinite(scales).all():
            raise ModelCorrupt(f"{self.scale.name} has scales that are not finite.")
        by_row = scales[np.arange(first, end) // rows]
        return Tile(Kind.FLOAT32, values * np.repeat(by_row, columns, axis=1)[:, : self.shape[1]])


def read_fp8(fields: Fields, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Stored], str]:
    """The quantized matrices of a checkpoint by the names of their weights, and what they are. Raises: ModelUnsupported, ModelCorrupt."""
    check_known(fields, ("fmt", "weight_block_size", "scale_fmt", *MEANINGLESS))
    if fields.text("fmt", "e4m3") != "e4m3":
        raise fields.unsupported("fmt", "'e4m3'")
    if fields.text("scale_fmt", "float") != "float":
        raise fields.unsupported("scale_fmt", "'float'")
    if not fields.has("weight_block_size"):
        raise fields.unsupported("weight_block_size", "two numbers, as in [128, 128]")
    block = fields.integers("weight_block_size")
    if len(block) != 2 or min(block) < 1:
        raise fields.unsupported("weight_block_size", "two numbers above 0, as in [128, 128]")
    matrices: dict[str, Stored] = {}
    for module in modules_of(tensors, "weight_scale_inv").values():
        matrices[f"{module.name}.weight"] = fp8_matrix(module, "weight_scale_inv", (block[0], block[1]))
    return matrices, f"fp8 in blocks of {block[0]} x {block[1]}"


def fp8_matrix(module: Module, scale_name: str, block: tuple[int, int]) -> Fp8Matrix:
    """One linear, if its tensors fit each other. Raises: ModelCorrupt, ModelUnsupported."""
    weight = module.get("weight", (STORED,))
    if len(weight.shape) != 2:
        raise ModelCorrupt(f"{weight.name} has shape {weight.shape}; it has to be two-dimensional.")
    needed = (-(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1]))
    scale = module.get(scale_name, SCALE_DTYPES)
    if scale.shape != needed and not (needed == (1, 1) and scale.shape in ((), (1,))):
        raise ModelCorrupt(f"{scale.name} has shape {scale.shape}; with blocks of {block[0]} x {block[1]} it has to be {needed}.")
    return Fp8Matrix(weight, scale, block)
