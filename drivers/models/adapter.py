"""A LoRA adapter in the arena: one segment, in which each linear of the base that it changes has two parts.

    q A  |rank x in            |                q B^T |rank x q rows|      0      |      0      |
    k A  |rank x in            |                k B^T |      0      |rank x k rows|      0      |
    v A  |rank x in            |  "down"        v B^T |      0      |      0      |rank x v rows|  "up"

The base serves query, key and value by one product, and gate and up by another (`drivers.models.layout`), so the adapter's matrices are
stacked alike: one product into all ranks of the stack and one out of them. Query heads are group-major there, so rows of the query's B and
columns of the output's A are permuted on the way in. The scale is multiplied into B. The parts start at multiples of 64 bytes. Which
linears a base has is `drivers.models.adaptable`'s.

Interface: `open_adapter` reads and checks, `inspect_adapter` answers what it needs, `load_adapter` copies it into place; `LoraBatch` is
what a decoder adds to one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from drivers.contract import InspectSpec, ModelSpec, SegmentSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.adaptable import Linear, Product, products_of, refusal, turn_down, turn_up
from drivers.models.checkpoint import read_base_config
from drivers.models.config import DecoderConfig
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


@dataclass(frozen=True, slots=True)
class Member:
    """An adapted linear inside its stack."""

    linear: Linear
    change: LoraTensors
    first_rank: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapted linears of a layer that the base serves by one product, and where their two parts start in the segment."""

    product: Product
    members: tuple[Member, ...]
    rank: int  # of all members together
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
    directory, base = Path(source.path), read_base_config(Path(source.base), source.max_positions)
    if base.foreign is not None:
        raise ModelUnsupported(f"{base.architecture} is computed by transformers; adapters are for the families that kerneld has itself.")
    changes = find_changes(directory, read_peft_config(directory))
    products = products_of(base)
    _check_fit(changes, products, base)
    stacks: list[Stack] = []
    size_bytes = 0
    for product in products:
        members = _members(product, changes)
        if members:
            stack = Stack(product, members, sum(member.change.rank for member in members), 0, 0)
            up_bytes = size_bytes + _aligned(stack.rank * product.columns * dtype.itemsize)
            stacks.append(replace(stack, down_bytes=size_bytes, up_bytes=up_bytes))
            size_bytes = up_bytes + _aligned(stack.rank * product.rows * dtype.itemsize)
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
            pairs[stack.product.layer][stack.product.place] = pair
            progress(stack.up_bytes + stack.rank * stack.product.rows * target.dtype.itemsize, files.size_bytes)
    finally:
        file.close()
    return AdapterWeights(tuple(pairs))


def view_adapter(files: AdapterFiles, target: Target) -> AdapterWeights:
    """An adapter whose segment is in place already."""
    pairs: list[dict[str, LoraPair]] = [{} for _ in range(files.base.num_layers)]
    for stack in files.stacks:
        pairs[stack.product.layer][stack.product.place] = _pair(stack, target)
    return AdapterWeights(tuple(pairs))


def _check_fit(changes: Mapping[str, LoraTensors], products: tuple[Product, ...], base: DecoderConfig) -> None:
    """Each change is for a linear of the base. Raises: ModelUnsupported, ModelCorrupt."""
    linears = {linear.module: linear for product in products for linear in product.linears}
    for module, change in changes.items():
        if module not in linears:
            raise refusal(base, module)
        found, expected = (change.up.shape[0], change.down.shape[1]), (linears[module].rows, linears[module].columns)
        if found != expected:
            raise ModelCorrupt(
                f"The adapter's {module} is for a linear of {found[0]} x {found[1]}; the base has {expected[0]} x {expected[1]}. "
                "It was made for another base."
            )


def _members(product: Product, changes: Mapping[str, LoraTensors]) -> tuple[Member, ...]:
    """The changed linears of one product, their ranks side by side."""
    members: list[Member] = []
    rank = 0
    for linear in product.linears:
        if linear.module in changes:
            members.append(Member(linear, changes[linear.module], rank))
            rank += changes[linear.module].rank
    return tuple(members)


def _pair(stack: Stack, target: Target) -> LoraPair:
    """Views of a stack's two parts, as they are multiplied."""
    [offset] = target.offsets
    parts: list[Tensor] = []
    for start, width in ((stack.down_bytes, stack.product.columns), (stack.up_bytes, stack.product.rows)):
        place = target.arena[offset + start : offset + start + stack.rank * width * target.dtype.itemsize]
        parts.append(place.view(target.dtype).view(stack.rank, width))
    blocks = [(member.first_rank, member.first_rank + member.change.rank, *member.linear.outputs) for member in stack.members]
    return LoraPair(parts[0].t(), parts[1], record_of(parts[0], parts[1], blocks))


def _copy(file: Shard, member: Member, base: DecoderConfig, pair: LoraPair) -> None:
    """Copy the change of one linear into its part of a stack."""
    change, linear = member.change, member.linear
    ranks = slice(member.first_rank, member.first_rank + change.rank)
    down, up = _values(file, change.down), _values(file, change.up) * change.scale
    down, up = turn_down(linear, down, base), turn_up(linear, up, base)
    for place, values in ((pair.down.t()[ranks], down), (pair.up[ranks, slice(*linear.outputs)], up.t())):
        place.copy_(values)
        if not bool(place.isfinite().all()):
            raise ModelCorrupt(f"{change.down.file.name}: {linear.module} has values that are not finite in {place.dtype}.")


def _values(file: Shard, stored: StoredTensor) -> Tensor:
    """A stored tensor in float32. Raises: ModelCorrupt."""
    values = torch.empty(stored.shape, dtype=DTYPES[FLOAT_KINDS[stored.stored_dtype]])
    file.read([bytes_of(values)], stored.start)
    return values.float()


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
