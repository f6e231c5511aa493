"""GGUF files: their metadata as a config, their tensors under the names that models are known by here.

A file of llama.cpp's converter has its own names, and some tensors changed: rows of query and key heads in pairs (Llama's kin), norms with
their 1 added (Gemma), experts stacked, scaling of rotary frequencies as a tensor. Here that is undone, tile by tile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.gguf import GgufHeader, TensorInfo, read_gguf
from drivers.models.config import DecoderConfig
from drivers.models.families.family import Reading
from drivers.models.families.table import FAMILIES
from drivers.models.fields import Fields
from drivers.models.ggufconfig import KINDS, GgufKind, config_of
from drivers.models.parts import rows_of
from drivers.models.quant.gguf_blocks import BLOCK_TYPES, BlockType
from drivers.models.shards import Shards, StoredTensor
from drivers.models.storage import Storage
from drivers.models.stored import FLOAT_KINDS, PlainTensor, Stored
from drivers.models.tiles import Array, Tile

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
MAX_FACTORS = 1 << 13  # pairs of dimensions of the widest head
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of blocks."""

    stored: StoredTensor
    block: BlockType

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.stored.shape

    @property
    def form(self) -> Storage:
        """What its blocks are made into."""
        return self.block.form

    @property
    def source(self) -> tuple[str, int]:
        """Where it begins."""
        return self.stored.file.name, self.stored.start

    @property
    def rows_at_once(self) -> int:
        """Any number."""
        return 1

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end). Raises: ModelCorrupt."""
        row_bytes = self.stored.size_bytes // rows_of(self.shape)
        values = np.empty((end - first, row_bytes // self.block.block_bytes, self.block.block_bytes), np.uint8)
        shards.open(self.stored).read([values.reshape(-1).data], self.stored.start + first * row_bytes)
        return self.block.decode(values)


@dataclass(frozen=True, slots=True)
class PairedHeads:
    """A tensor whose rows are in pairs within each head: row 2 i + h of the file is row h * head_dim / 2 + i here."""

    inner: Stored
    head_dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.inner.shape

    @property
    def form(self) -> Storage:
        """As stored."""
        return self.inner.form

    @property
    def source(self) -> tuple[str, int]:
        """Where it begins."""
        return self.inner.source

    @property
    def rows_at_once(self) -> int:
        """Whole heads."""
        return self.head_dim

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end). Raises: ModelCorrupt."""
        start, stop = first // self.head_dim * self.head_dim, -(-end // self.head_dim) * self.head_dim
        tile = self.inner.tile(shards, start, stop)
        order = np.arange(stop - start).reshape(-1, self.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)[first - start : end - start]

        def ordered(values: Array | None) -> Array | None:
            return None if values is None else values[order]

        return replace(tile, values=tile.values[order], scales=ordered(tile.scales), offsets=ordered(tile.offsets))


@dataclass(frozen=True, slots=True)
class Expert:
    """One matrix of a stack `[experts, rows, columns]`."""

    stack: Stored
    idx: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the one."""
        return self.stack.shape[1:]

    @property
    def form(self) -> Storage:
        """As stored."""
        return self.stack.form

    @property
    def source(self) -> tuple[str, int]:
        """Where the stack begins; experts follow one another."""
        name, start = self.stack.source
        return name, start + self.idx

    @property
    def rows_at_once(self) -> int:
        """As the stack."""
        return self.stack.rows_at_once

    def tile(self, shards: Shards, first: int, end: int) -> Tile:
        """Read rows [first, end). Raises: ModelCorrupt."""
        start = self.idx * self.shape[0]
        return self.stack.tile(shards, start + first, start + end)


def open_gguf(path: Path, max_positions: int) -> tuple[DecoderConfig, dict[str, Stored], str]:
    """Config, tensors by our names, and how they are quantized. Raises: ModelUnsupported, ModelCorrupt."""
    header = read_gguf(path)
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise ModelUnsupported(f"{path.name} is one file of several; join them (llama-gguf-split --merge) and try again.")
    architecture = header.text("general.architecture")
    if architecture not in KINDS:
        raise ModelUnsupported(f"{path.name}: general.architecture is {architecture!r}; supported is one of {', '.join(KINDS)}.")
    kind, tensors = KINDS[architecture], _tensors(header)
    factors = {name: _factors(tensors[name], name) for name in ROPE_FACTORS if name in tensors}
    fields = Fields(config_of(header, kind, {name: stored.shape for name, stored in tensors.items()}, factors), path.name)
    family = FAMILIES[fields.texts("architectures")[0]]
    config = family.read(Reading(fields, family, path.parent, max_positions))
    config = replace(config, has_unit_offset=False)  # what is stored has it added
    named: dict[str, Stored] = {}
    for name, stored in tensors.items():
        if name not in ROPE_FACTORS:
            named |= dict(_named(name, stored, kind, config))
    types = sorted({stored.block.name for stored in tensors.values() if isinstance(stored, GgufTensor)})
    return config, named, f"gguf {', '.join(types)}" if types else ""


def _factors(stored: Stored, name: str) -> Array:
    """The numbers of a vector, one for each pair of dimensions. Raises: ModelCorrupt, if it is none, or longer than any head."""
    if len(stored.shape) != 1 or stored.shape[0] > MAX_FACTORS:
        raise ModelCorrupt(f"{stored.source[0]}: {name} has shape {stored.shape}; it has to be a vector of at most {MAX_FACTORS} numbers.")
    with Shards() as shards:
        return stored.tile(shards, 0, stored.shape[0]).values[:, 0]


def _tensors(header: GgufHeader) -> dict[str, Stored]:
    """The tensors by the names of the file, each within it and none on another. Raises: ModelCorrupt, ModelUnsupported."""
    tensors: dict[str, Stored] = {}
    end = header.data_start
    for info in sorted(header.tensors, key=lambda info: info.offset):
        stored, block = _stored(header, info)
        if stored.start < end:
            raise ModelCorrupt(f"{header.path.name}: {info.name} overlaps the tensor before it.")
        end = stored.start + stored.size_bytes
        if end > header.file_bytes:
            raise ModelCorrupt(
                f"{header.path.name}: {info.name} ends at byte {end}; the file has {header.file_bytes}, so it was cut short."
            )
        tensors[info.name] = PlainTensor(stored) if block.name in FLOAT_KINDS else GgufTensor(stored, block)
    return tensors


def _stored(header: GgufHeader, info: TensorInfo) -> tuple[StoredTensor, BlockType]:
    block = BLOCK_TYPES.get(info.type_id)
    if block is None:
        supported = ", ".join(known.name for known in BLOCK_TYPES.values())
        raise ModelUnsupported(f"{header.path.name}: {info.name} is of type {info.type_id}; supported are {supported}.")
    if info.shape[-1] % block.columns:
        raise ModelCorrupt(f"{header.path.name}: {info.name} has {info.shape[-1]} columns; blocks of {block.name} have {block.columns}.")
    size_bytes = rows_of(info.shape) * block.block_bytes
    if len(info.shape) > 1:
        size_bytes *= info.shape[-1] // block.columns
    elif block.columns > 1:
        raise ModelCorrupt(f"{header.path.name}: {info.name} is a vector of {block.name}; vectors are floats.")
    return StoredTensor(info.name, header.path, block.name, info.shape, header.data_start + info.offset, size_bytes), block


def _named(name: str, stored: Stored, kind: GgufKind, config: DecoderConfig) -> Iterator[tuple[str, Stored]]:
    """A tensor of the file as the tensors that the model knows; one that it does not know keeps its name, and is refused by it."""
    top, _, last = name.rpartition(".")
    if top in TOP_NAMES:
        yield f"{TOP_NAMES[top]}.{last}", stored
        return
    match = BLOCK.fullmatch(name)
    ours = None if match is None else kind.names.get(match[2])
    if match is None or ours is None:
        yield name, stored
        return
    prefix = f"model.layers.{match[1]}."
    if match[2] in ("attn_q", "attn_k") and kind.has_paired_heads:
        stored = PairedHeads(stored, config.head_dim)
    if "{expert}" in ours:
        num_experts = 0 if config.experts is None else config.experts.settings.num_experts
        if len(stored.shape) != 3 or stored.shape[0] != num_experts:
            raise ModelCorrupt(f"{stored.source[0]}: {name} has shape {stored.shape}; it has to be a stack of {num_experts} matrices.")
        for idx in range(num_experts):
            yield prefix + ours.format(expert=idx) + ".weight", Expert(stored, idx)
        return
    yield f"{prefix}{ours}.{match[3]}", stored
