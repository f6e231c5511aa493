"""GPTQ: integers of 4 or 8 bits in groups along the inputs, packed with inputs side by side in 32-bit words.

    qweight [in * bits / 32, out] int32     bits [b * j, b * j + b) of word i hold input 32 / b * i + j
    scales  [groups, out]
    qzeros  [groups, out * bits / 32]       zero points less 1 in checkpoint_format "gptq", as they are in "gptq_v2"
    g_idx   [in] int32                      the group of each input; with desc_act anything, else input // group_size

    w[n, k] = scales[g, n] * (q[n, k] - zero[g, n])

With desc_act neighbours do not share a scale: such matrices become floats. Zero points of the first format wrap: a stored 15 is 0.

Source: AutoGPTQ and GPTQModel (`nn_modules/qlinear/torch.py`, `convert_gptq_v1_to_v2_format`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drivers.errors import ModelCorrupt
from drivers.models.fields import Fields
from drivers.models.quant.matrix import (
    KINDS_OF_BITS,
    Module,
    check_known,
    group_of,
    integer_form,
    modules_of,
    read_rows,
    tile_of,
    unpacked,
)
from drivers.models.shards import Shards, StoredTensor
from drivers.models.storage import Kind, Storage
from drivers.models.stored import Stored
from drivers.models.tiles import Array, Tile

FORMATS = ("gptq", "gptq_v2")
SCALE_DTYPES = ("F16", "BF16", "F32")
# What says how it was made, and what `FORMATS` and the tensors say again.
MEANINGLESS = (
    "quant_method", "damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "model_name_or_path",
    "model_file_base_name", "meta", "quantizer", "dataset", "tokenizer", "model_seqlen", "block_name_to_quantize",
    "module_name_preceding_first_block", "batch_size", "pad_token_id", "use_exllama", "max_input_length", "exllama_config",
    "cache_block_outputs", "modules_in_block_to_quantize", "use_cuda_fp16", "backend", "disable_exllama", "is_marlin_format",
    "lm_head", "hyb_act", "mse", "parallel_packing", "act_group_aware", "offload_to_disk",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GptqMatrix:
    """One linear."""

    tensors: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    form: Storage
    bits: int
    group: int
    zero_shift: int  # of the stored zero points
    is_ordered: bool  # desc_act: any input may be in any group

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
        integers = unpacked(read_rows(shards, self.tensors["qweight"]).T, self.bits)
        scales = np.ascontiguousarray(read_rows(shards, self.tensors["scales"]).T)
        stored = unpacked(read_rows(shards, self.tensors["qzeros"]), self.bits).T
        zeros = (stored.astype(np.int32) + self.zero_shift) & ((1 << self.bits) - 1)
        at = self._groups(shards)
        if not self.form.has_offsets and self.form.is_quantized and (zeros != 1 << (self.bits - 1)).any():
            raise ModelCorrupt(f"{self.tensors['qzeros'].name} has other zero points than those of sym, which config.json says.")
        return tile_of(self.form, integers, scales, zeros, at).part(first, end)

    def _groups(self, shards: Shards) -> Array:
        columns = self.shape[1]
        plain = np.arange(columns) // self.group
        if "g_idx" not in self.tensors:
            if self.is_ordered:
                raise ModelCorrupt(f"The weights lack {self.tensors['qweight'].name.removesuffix('qweight')}g_idx, which desc_act needs.")
            return plain
        found = read_rows(shards, self.tensors["g_idx"])[:, 0]
        if self.is_ordered:
            if found.min() < 0 or found.max() >= self.tensors["scales"].shape[0]:
                raise ModelCorrupt(f"{self.tensors['g_idx'].name} names groups that there are not.")
            return found
        if (found != plain).any():
            raise ModelCorrupt(f"{self.tensors['g_idx'].name} is out of order, but config.json does not say desc_act.")
        return plain


def read_gptq(fields: Fields, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Stored], str]:
    """The quantized matrices of a checkpoint by the names of their weights, and what they are. Raises: ModelUnsupported, ModelCorrupt."""
    check_known(fields, ("bits", "group_size", "desc_act", "sym", "checkpoint_format", "format", "pack_dtype", "dynamic", *MEANINGLESS))
    bits, group_size = fields.integer("bits"), fields.integer("group_size", low=-1)
    if bits not in KINDS_OF_BITS:
        raise fields.unsupported("bits", "4 or 8")
    name = "checkpoint_format" if fields.has("checkpoint_format") else "format"
    version = fields.text(name, "gptq")
    if version not in FORMATS:
        raise fields.unsupported(name, " or ".join(FORMATS))
    if fields.text("pack_dtype", "int32") != "int32":
        raise fields.unsupported("pack_dtype", "int32")
    if fields.values.get("dynamic"):
        raise fields.unsupported("dynamic", "none: all modules quantized alike")
    is_symmetric, is_ordered = fields.flag("sym", True), fields.flag("desc_act", False) and group_size != -1
    matrices: dict[str, Stored] = {}
    for module in modules_of(tensors, "qweight").values():
        shape, group = _checked(module, bits, group_size)
        form = Storage(Kind.FLOAT32) if is_ordered else integer_form(bits, group, shape[1], not is_symmetric)
        matrix = GptqMatrix(module.tensors, shape, form, bits, group, 1 if version == "gptq" else 0, is_ordered)
        matrices[f"{module.name}.weight"] = matrix
    grouped = f" in groups of {group_size}" if group_size > 0 else ""
    return matrices, f"gptq int{bits}{grouped}{', desc_act' if is_ordered else ''}"


def _checked(module: Module, bits: int, group_size: int) -> tuple[tuple[int, int], int]:
    """Shape of a linear and columns of its groups, if its tensors fit each other. Raises: ModelCorrupt, ModelUnsupported."""
    per_word = 32 // bits
    qweight = module.get("qweight", ("I32",))
    if len(qweight.shape) != 2 or qweight.shape[1] % per_word:
        raise ModelCorrupt(f"{qweight.name} has shape {qweight.shape}; it has to be two-dimensional, its columns a multiple of {per_word}.")
    columns, rows = qweight.shape[0] * per_word, qweight.shape[1]
    group = group_of(group_size, columns, qweight.name)
    groups = -(-columns // group)
    module.get("scales", SCALE_DTYPES, (groups, rows))
    module.get("qzeros", ("I32",), (groups, rows // per_word))
    if "g_idx" in module.tensors:
        module.get("g_idx", ("I32",), (columns,))
    return (rows, columns), group
