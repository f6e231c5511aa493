"""A LoRA adapter in the arena: one segment, in which each linear of the base that it changes has two parts.

    q A  |rank x in            |                q B^T |rank x q rows|      0      |      0      |
    k A  |rank x in            |                k B^T |      0      |rank x k rows|      0      |
    v A  |rank x in            |  "down"        v B^T |      0      |      0      |rank x v rows|  "up"

The base serves query, key and value by one product, and gate and up by another (`drivers.models.layout`), so the adapter's matrices are
stacked alike: one product into all ranks of the stack and one out of them. Query heads are group-major there, so rows of the query's B and
columns of the output's A are permuted on the way in. The scale is multiplied into B. The parts start at multiples of 64 bytes.

Interface: `open_adapter` reads and checks, `inspect_adapter` answers what it needs, `load_adapter` copies it into place; `LoraBatch` is
what a decoder adds to one step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from drivers.contract import InspectSpec, ModelSpec, SegmentSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.families.table import read_config
from drivers.models.loader import PageShape, Target
from drivers.models.peft import LoraTensors, find_changes, read_peft_config
from drivers.models.placing import bytes_of
from drivers.models.shards import Shard, StoredTensor
from drivers.models.storage import ALIGN_BYTES
from drivers.models.stored import FLOAT_KINDS
from drivers.models.weight import DTYPES
from drivers.native.lora import record_of
from drivers.ops.reference import LoraPair, LoraRows
from drivers.ops.table import OpTable

LAYOUT_VERSION = "lora.1"  # changes with anything about how an adapter is computed
MODULE = re.compile(r"model\.layers\.(0|[1-9]\d{0,3})\.(self_attn|mlp)\.(\w+)_proj")
STACKS = {"qkv": ("q", "k", "v"), "output": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
PLACE_OF = {name: place for place, names in STACKS.items() for name in names}
BLOCK_OF = {name: "self_attn" if name in "qkvo" else "mlp" for name in PLACE_OF}


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear of the base as it is stored."""

    columns: int  # in
    rows: int  # out
    first_row: int = 0  # in the stack that serves it

    @property
    def outputs(self) -> tuple[int, int]:
        """Its rows in the stack, half-open."""
        return self.first_row, self.first_row + self.rows


@dataclass(frozen=True, slots=True)
class Member:
    """An adapted linear inside its stack."""

    name: str  # "q", "k", "v", "o", "gate", "up" or "down"
    linear: Linear
    change: LoraTensors
    first_rank: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapted linears of a layer that the base serves by one product, and where their two parts start in the segment."""

    layer: int
    place: str
    members: tuple[Member, ...]
    rank: int  # of all members together
    columns: int
    rows: int
    down_bytes: int
    up_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter directory that was read and fits its base."""

    base: DecoderConfig
    stacks: tuple[Stack, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """A loaded adapter: views of the arena."""

    pairs: tuple[Mapping[str, LoraPair], ...]  # [layer]: by the part of the layer that it changes


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """The adapters of one step, and the tokens that run with each."""

    rows: LoraRows
    adapters: Sequence[AdapterWeights]

    def add(self, ops: OpTable, y: Tensor, x: Tensor, where: tuple[int, str]) -> Tensor:
        """Add to `y`, in place, what the adapters change of the product of `x` in a layer's part."""
        layer, place = where
        pairs = [adapter.pairs[layer].get(place) for adapter in self.adapters]
        return ops.lora(y, x, self.rows, pairs) if any(pairs) else y


def open_adapter(source: InspectSpec, dtype: torch.dtype) -> AdapterFiles:
    """Read an adapter and the config of its base. Raises: ModelUnsupported, ModelCorrupt."""
    if source.quant:
        raise ModelUnsupported(f"quant is {source.quant!r}; an adapter is in float32, bfloat16 or float16.")
    directory, base = Path(source.path), read_config(Path(source.base), source.max_positions)
    changes = find_changes(directory, read_peft_config(directory))
    linears = _linears(base)
    found = {_layer_and_name(module, change, linears, base): change for module, change in changes.items()}
    stacks: list[Stack] = []
    size_bytes = 0
    for layer in range(base.num_layers):
        for place, names in STACKS.items():
            members = {name: found[layer, name] for name in names if (layer, name) in found}
            if members:
                stack = _stack((layer, place), members, linears)
                up_bytes = size_bytes + _aligned(stack.rank * stack.columns * dtype.itemsize)
                stacks.append(replace(stack, down_bytes=size_bytes, up_bytes=up_bytes))
                size_bytes = up_bytes + _aligned(stack.rank * stack.rows * dtype.itemsize)
    return AdapterFiles(base, tuple(stacks), size_bytes)


def inspect_adapter(source: InspectSpec, pages: PageShape) -> ModelSpec:
    """What an adapter needs of a device. Raises: ModelUnsupported, ModelCorrupt."""
    files = open_adapter(source, pages.dtype)
    base, dtype_name = files.base, str(pages.dtype).removeprefix("torch.")
    tensors = [tensor for stack in files.stacks for member in stack.members for tensor in (member.change.down, member.change.up)]
    return ModelSpec(
        architecture=f"LoRA of {base.architecture}",
        dtype=dtype_name,
        vocab_size=base.vocab_size,
        max_positions=base.max_positions,
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        segments=(SegmentSpec("adapter", files.size_bytes),),
        groups=(),
        bos_token_id=base.bos_token_id,
        eos_token_ids=base.eos_token_ids,
        numerics=f"{LAYOUT_VERSION}/{dtype_name}/torch-{torch.__version__}",
    )


def load_adapter(files: AdapterFiles, target: Target, progress: Callable[[int, int], None]) -> AdapterWeights:
    """Copy an adapter into its one segment. `progress(bytes_done, bytes_total)` counts bytes in the arena.

    Raises: ModelCorrupt, if the file changed meanwhile or a value is not finite; the target is then half written.
    """
    [offset] = target.offsets
    target.arena[offset : offset + files.size_bytes].zero_()
    pairs: list[dict[str, LoraPair]] = [{} for _ in range(files.base.num_layers)]
    progress(0, files.size_bytes)
    file = Shard(files.stacks[0].members[0].change.down.file)
    try:
        for stack in files.stacks:
            pair = _pair(stack, target)
            for member in stack.members:
                _copy(file, member, files.base, pair)
            pairs[stack.layer][stack.place] = pair
            progress(stack.up_bytes + stack.rank * stack.rows * target.dtype.itemsize, files.size_bytes)
    finally:
        file.close()
    return AdapterWeights(tuple(pairs))


def view_adapter(files: AdapterFiles, target: Target) -> AdapterWeights:
    """An adapter whose segment is in place already."""
    pairs: list[dict[str, LoraPair]] = [{} for _ in range(files.base.num_layers)]
    for stack in files.stacks:
        pairs[stack.layer][stack.place] = _pair(stack, target)
    return AdapterWeights(tuple(pairs))


def _linears(base: DecoderConfig) -> dict[str, Linear]:
    """The linears of a layer by name; all layers have the same."""
    hidden, inner = base.hidden_size, base.intermediate_size
    width, kv_width = base.num_heads * base.head_dim, base.num_kv_heads * base.head_dim
    return {
        "q": Linear(hidden, width),
        "k": Linear(hidden, kv_width, width),
        "v": Linear(hidden, kv_width, width + kv_width),
        "o": Linear(width, hidden),
        "gate": Linear(hidden, inner),
        "up": Linear(hidden, inner, inner),
        "down": Linear(inner, hidden),
    }


def _layer_and_name(module: str, change: LoraTensors, linears: Mapping[str, Linear], base: DecoderConfig) -> tuple[int, str]:
    """Which linear of the base a change is for. Raises: ModelUnsupported, ModelCorrupt, if the base has none such."""
    match = MODULE.fullmatch(module)
    if match is None or BLOCK_OF.get(match[3]) != match[2]:
        raise ModelUnsupported(f"The adapter changes {module[:200]}; supported are the linears of attention and MLP.")
    layer, linear = int(match[1]), linears[match[3]]
    if layer >= base.num_layers:
        raise ModelCorrupt(f"The adapter changes {module}; the base has {base.num_layers} layers. It was made for another base.")
    found, expected = (change.up.shape[0], change.down.shape[1]), (linear.rows, linear.columns)
    if found != expected:
        raise ModelCorrupt(
            f"The adapter's {module} is for a linear of {found[0]} x {found[1]}; the base has {expected[0]} x {expected[1]}. "
            "It was made for another base."
        )
    return layer, match[3]


def _stack(where: tuple[int, str], changes: Mapping[str, LoraTensors], linears: Mapping[str, Linear]) -> Stack:
    """Put the changed linears of one product side by side."""
    layer, place = where
    members: list[Member] = []
    rank = 0
    for name, change in changes.items():
        members.append(Member(name, linears[name], change, rank))
        rank += change.rank
    served = [linears[name] for name in STACKS[place]]
    return Stack(layer, place, tuple(members), rank, served[0].columns, sum(linear.rows for linear in served), 0, 0)


def _pair(stack: Stack, target: Target) -> LoraPair:
    """Views of a stack's two parts, as they are multiplied."""
    [offset] = target.offsets
    parts: list[Tensor] = []
    for start, width in ((stack.down_bytes, stack.columns), (stack.up_bytes, stack.rows)):
        place = target.arena[offset + start : offset + start + stack.rank * width * target.dtype.itemsize]
        parts.append(place.view(target.dtype).view(stack.rank, width))
    blocks = [(member.first_rank, member.first_rank + member.change.rank, *member.linear.outputs) for member in stack.members]
    return LoraPair(parts[0].t(), parts[1], record_of(parts[0], parts[1], blocks))


def _copy(file: Shard, member: Member, base: DecoderConfig, pair: LoraPair) -> None:
    """Copy the change of one linear into its part of a stack."""
    change, linear = member.change, member.linear
    ranks = slice(member.first_rank, member.first_rank + change.rank)
    down, up = _values(file, change.down), _values(file, change.up) * change.scale
    heads = (base.num_kv_heads, base.num_queries_per_kv, base.head_dim)
    if member.name == "o":
        down = down.view(-1, *heads).transpose(1, 2).reshape(down.shape)
    if member.name == "q":
        up = up.view(*heads, -1).transpose(0, 1).reshape(up.shape)
    for place, values in ((pair.down.t()[ranks], down), (pair.up[ranks, slice(*linear.outputs)], up.t())):
        place.copy_(values)
        if not bool(place.isfinite().all()):
            raise ModelCorrupt(f"{change.down.file.name}: {member.name}_proj has values that are not finite in {place.dtype}.")


def _values(file: Shard, stored: StoredTensor) -> Tensor:
    """A stored tensor in float32. Raises: ModelCorrupt."""
    values = torch.empty(stored.shape, dtype=DTYPES[FLOAT_KINDS[stored.stored_dtype]])
    file.read([bytes_of(values)], stored.start)
    return values.float()


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
