"""The formats of quantized checkpoints that there are, by what their config calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drivers.models.fields import Fields
from drivers.models.quant.awq import read_awq
from drivers.models.quant.compressed import read_compressed
from drivers.models.quant.fp8 import read_fp8
from drivers.models.quant.gptq import read_gptq
from drivers.models.shards import StoredTensor
from drivers.models.stored import PlainTensor, Stored, check_floats

Reader = Callable[[Fields, Mapping[str, StoredTensor]], tuple[dict[str, Stored], str]]


@dataclass(frozen=True, slots=True)
class Format:
    """One format: its reader, and the last words of the tensors that a quantized module has instead of its weight, or beside it."""

    read: Reader
    parts: tuple[str, ...]


COMPRESSED_PARTS = (
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale", "input_zero_point", "output_scale",
    "q_scale", "k_scale", "v_scale",
)  # fmt: skip
FORMATS = {
    "gptq": Format(read_gptq, ("qweight", "qzeros", "scales", "g_idx")),
    "awq": Format(read_awq, ("qweight", "qzeros", "scales")),
    "fp8": Format(read_fp8, ("weight_scale_inv", "input_scale")),
    "compressed-tensors": Format(read_compressed, COMPRESSED_PARTS),
}


def open_tensors(config: Fields, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Stored], str]:
    """The tensors of a checkpoint by the names that the model knows, and how it is quantized; "" if it is not.

    Raises: ModelUnsupported, naming what is not understood; ModelCorrupt.
    """
    fields = config.inner("quantization_config") or config.inner("compression_config")
    if fields is None:
        return _plain(tensors), ""
    method = fields.text("quant_method", "compressed-tensors" if config.has("compression_config") else None)
    if method not in FORMATS:
        raise fields.unsupported("quant_method", " or ".join(FORMATS))
    chosen = FORMATS[method]
    matrices, name = chosen.read(fields, tensors)
    left = {found: tensor for found, tensor in tensors.items() if found not in matrices and found.rpartition(".")[2] not in chosen.parts}
    return {**_plain(left), **matrices}, name


def _plain(tensors: Mapping[str, StoredTensor]) -> dict[str, Stored]:
    check_floats(tensors.values())
    return {name: PlainTensor(tensor) for name, tensor in tensors.items()}
