"""compressed-tensors: integers or FP8 with scales of the whole matrix, of rows, or of groups along the inputs.

    int-quantized     weight [out, in] I8                      weight_scale [out, 1], or [out, groups]
    pack-quantized    weight_packed [out, in * bits / 32] I32  the same; the lowest bits first, each value plus 2^(bits - 1)
    float-quantized   weight [out, in] F8_E4M3                 weight_scale [1], [out, 1], or of blocks

    w[n, k] = weight_scale[n, g] * (q[n, k] - weight_zero_point[n, g])

Zero points, where weights are not symmetric, are I8, or packed like weights but along the rows. With `actorder: group`, weight_g_idx
names the group of each input; such matrices become floats. Scales of activations are left out: ours are taken token by token.
Modules that are in no group, because `ignore` names them or for another reason, have plain weights.

Source: compressed_tensors/compressors/quantized_compressors (`pack_to_int32`, `dequantize`), and transformers' quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.fields import Fields
from drivers.models.quant.fp8 import STORED as FP8
from drivers.models.quant.fp8 import fp8_matrix
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

FORMATS = ("int-quantized", "pack-quantized", "float-quantized", "naive-quantized", "mixed-precision")
STRATEGIES = ("tensor", "channel", "group", "block")
SCALE_DTYPES = ("F32", "BF16", "F16")
KNOWN = (
    "quant_method", "format", "config_groups", "ignore", "kv_cache_scheme", "quantization_status", "global_compression_ratio",
    "sparsity_config", "transform_config", "version", "run_compressed",
)  # fmt: skip
KNOWN_OF_WEIGHTS = (
    "num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic", "actorder", "observer", "observer_kwargs",
    "scale_dtype", "zp_dtype",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of a group of modules are quantized."""

    targets: tuple[str, ...]
    bits: int
    is_float: bool
    is_symmetric: bool
    strategy: str
    group_size: int  # -1: all columns
    block: tuple[int, int]
    is_ordered: bool

    @property
    def name(self) -> str:
        """In a few words."""
        return f"{'fp' if self.is_float else 'int'}{self.bits}{f' in groups of {self.group_size}' if self.group_size > 0 else ''}"


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """One linear of integers."""

    tensors: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    form: Storage
    scheme: Scheme
    group: int

    @property
    def source(self) -> tuple[str, int]:
        """Where its integers begin."""
        return self._weight.file.name, self._weight.start

    @property
    def rows_at_once(self) -> int:
        """Any number."""
        return 1

    @property
    def _weight(self) -> StoredTensor:
        return self.tensors.get("weight_packed") or self.tensors["weight"]

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end). Raises: ModelCorrupt."""
        bits, middle = self.scheme.bits, 1 << (self.scheme.bits - 1)
        stored = read_rows(shards, self._weight, first, end)
        integers = (stored.view(np.uint8) ^ np.uint8(128)) if stored.dtype == np.int8 else unpacked(stored, bits)[:, : self.shape[1]]
        scales = self._of_rows(read_rows(shards, self.tensors["weight_scale"]), first, end)
        zeros = np.full_like(scales, middle) if self.scheme.is_symmetric else self._zeros(shards, first, end)
        return tile_of(self.form, integers, scales, zeros, self._groups(shards))

    def _of_rows(self, values: Array, first: int, end: int) -> Array:
        """Scales or zero points of some rows; one for the whole matrix stands for every row."""
        if values.size == 1:
            return np.repeat(values.reshape(1, 1), end - first, axis=0)
        return values.reshape(self.shape[0], -1)[first:end]

    def _zeros(self, shards: Shards, first: int, end: int) -> Array:
        stored = self.tensors["weight_zero_point"]
        values = read_rows(shards, stored)
        if stored.stored_dtype == "I32":  # packed along the rows
            return unpacked(values.T, self.scheme.bits).T[first:end].astype(np.int32)
        return self._of_rows(values, first, end).astype(np.int32) + (1 << (self.scheme.bits - 1))

    def _groups(self, shards: Shards) -> Array:
        plain = np.arange(self.shape[1]) // self.group
        if "weight_g_idx" not in self.tensors:
            return plain
        found = read_rows(shards, self.tensors["weight_g_idx"])[:, 0]
        if not self.scheme.is_ordered and (found != -1).any() and (found != plain).any():
            raise ModelCorrupt(f"{self.tensors['weight_g_idx'].name} is out of order, but config.json does not say actorder.")
        if self.scheme.is_ordered and (found.min() < 0 or found.max() > plain[-1]):
            raise ModelCorrupt(f"{self.tensors['weight_g_idx'].name} names groups that there are not.")
        return found if self.scheme.is_ordered else plain


def read_compressed(fields: Fields, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Stored], str]:
    """The quantized matrices of a checkpoint by the names of their weights, and what they are. Raises: ModelUnsupported, ModelCorrupt."""
    check_known(fields, KNOWN)
    if fields.text("format", "int-quantized") not in FORMATS:
        raise fields.unsupported("format", " or ".join(FORMATS))
    if fields.text("quantization_status", "compressed") != "compressed":
        raise fields.unsupported("quantization_status", "'compressed'")
    for name in ("sparsity_config", "transform_config"):
        inner = fields.inner(name)
        if inner is not None and inner.values and inner.values.get("format") != "dense":
            raise fields.unsupported(name, "none")
    groups = fields.inner("config_groups")
    if groups is None or not groups.values:
        raise ModelCorrupt(f"{fields.origin}: config_groups is missing.")
    schemes = [_scheme(groups.inner(name)) for name in groups.values]
    matrices: dict[str, Stored] = {}
    for module in modules_of(tensors, "weight_scale").values():
        matrices[f"{module.name}.weight"] = _matrix(module, _scheme_of(module, schemes, groups))
    return matrices, f"compressed-tensors {', '.join(dict.fromkeys(scheme.name for scheme in schemes))}"


def _scheme(group: Fields | None) -> Scheme:
    weights = None if group is None else group.inner("weights")
    if group is None or weights is None:
        raise ModelCorrupt("config.json, config_groups: a group has no weights.")
    check_known(weights, KNOWN_OF_WEIGHTS)
    kind, bits, strategy = weights.text("type", "int"), weights.integer("num_bits"), weights.text("strategy", "tensor")
    if kind not in ("int", "float"):
        raise weights.unsupported("type", "'int' or 'float'")
    if bits not in KINDS_OF_BITS or (kind == "float" and bits != 8):
        raise weights.unsupported("num_bits", "4 or 8 for integers, 8 for floats")
    if strategy not in STRATEGIES or (strategy == "block") > (kind == "float") or (strategy == "group" and kind == "float"):
        raise weights.unsupported("strategy", "'tensor', 'channel', 'group' for integers, and 'block' for floats")
    if weights.flag("dynamic", False):
        raise weights.unsupported("dynamic", "false")
    order = weights.values.get("actorder")
    if order not in (None, False, "weight", "static", "group", "dynamic"):
        raise weights.unsupported("actorder", "null, 'weight', 'static' or 'group'")
    block = weights.integers("block_structure") if strategy == "block" else (1, 1)
    if len(block) != 2 or min(block) < 1:
        raise weights.unsupported("block_structure", "two numbers above 0, as in [128, 128]")
    return Scheme(
        targets=group.texts("targets"),
        bits=bits,
        is_float=kind == "float",
        is_symmetric=weights.flag("symmetric", True),
        strategy=strategy,
        group_size=weights.integer("group_size", low=-1) if strategy == "group" else -1,
        block=(block[0], block[1]),
        is_ordered=order in ("group", "dynamic"),
    )


def _scheme_of(module: Module, schemes: list[Scheme], groups: Fields) -> Scheme:
    """The scheme of a module. Where there is one, it is that of all that is quantized; patterns of strangers are not run."""
    if len(schemes) == 1:
        return schemes[0]
    named = [scheme for scheme in schemes if any(module.name == name or module.name.endswith(f".{name}") for name in scheme.targets)]
    found = named or [scheme for scheme in schemes if "Linear" in scheme.targets]
    if len(found) != 1:
        raise ModelUnsupported(
            f"{groups.origin} does not say plainly which group {module.name} belongs to; supported are one group, or targets that are "
            "names of modules and 'Linear'."
        )
    return found[0]


def _matrix(module: Module, scheme: Scheme) -> Stored:
    """One linear, if its tensors fit each other. Raises: ModelCorrupt, ModelUnsupported."""
    if scheme.is_float:
        weight = module.get("weight", (FP8,))
        rows = weight.shape[0] if weight.shape else 1
        columns = max(1, weight.shape[-1] if weight.shape else 1)
        block = {"tensor": (rows, columns), "channel": (1, columns)}.get(scheme.strategy, scheme.block)
        return fp8_matrix(module, "weight_scale", block)
    shape = _shape(module, scheme.bits)
    group = group_of(scheme.group_size, shape[1], module.name)
    groups = -(-shape[1] // group)
    _check_scales(module, "weight_scale", SCALE_DTYPES, (shape[0], groups), scheme)
    if not scheme.is_symmetric:
        zeros = module.get("weight_zero_point", ("I8", "I32"))
        if zeros.stored_dtype == "I32":
            module.get("weight_zero_point", ("I32",), (-(-shape[0] * scheme.bits // 32), groups))
        else:
            _check_scales(module, "weight_zero_point", ("I8",), (shape[0], groups), scheme)
    if scheme.is_ordered or "weight_g_idx" in module.tensors:
        module.get("weight_g_idx", ("I32",), (shape[1],))
    form = Storage(Kind.FLOAT32) if scheme.is_ordered else integer_form(scheme.bits, group, shape[1], not scheme.is_symmetric)
    return IntegerMatrix(module.tensors, shape, form, scheme, group)


def _check_scales(module: Module, name: str, dtypes: tuple[str, ...], shape: tuple[int, int], scheme: Scheme) -> None:
    if scheme.strategy == "tensor" and module.get(name, dtypes).shape in ((), (1,), (1, 1)):
        return
    if shape[1] == 1 and module.get(name, dtypes).shape == shape[:1]:
        return
    module.get(name, dtypes, shape)


def _shape(module: Module, bits: int) -> tuple[int, int]:
    """Rows and columns of a linear of integers."""
    if "weight_packed" not in module.tensors:
        weight = module.get("weight", ("I8",))
        if len(weight.shape) != 2 or bits != 8:
            raise ModelUnsupported(
                f"{weight.name} is int8 of shape {weight.shape} in a group of {bits} bits; a matrix of 8 bits is supported."
            )
        return weight.shape[0], weight.shape[1]
    packed = module.get("weight_packed", ("I32",))
    if len(packed.shape) != 2:
        raise ModelCorrupt(f"{packed.name} has shape {packed.shape}; it has to be two-dimensional.")
    return packed.shape[0], packed.shape[1] * (32 // bits)
