"""How keys and values lie in the arena of the CUDA driver, and how a step tells kernels of its rows.

    frame f   arena[f * granule_bytes :]   | layer 0 | layer 1 | ... | slack |
    layer     | keys [J][P][D] | values [J][P][D] | scales of keys [J][P] f32 | scales of values [J][P] f32 |

J KV heads, P tokens of a page, D head_dim; scales are there only where keys and values are quantized, one for each token and head. The keys
of one head in one page are one run of memory, so that a tile of keys is read in long pieces wherever the frames lie.

Kernels find the frames of a row in its page table, `tables [slots, pages] int32`, row slot by row slot. Beside the tables a model's rows
have, on the device and by row slot,

    ints   [slots, 8] int64     token (the last, whose KV is not computed), position of it, is done, top_k, seed
    stops  [slots, 16] int64    tokens that end the row; -1 where there are fewer
    cuts   [slots, 4] float64   temperature, top_p, min_p
    adapters [products, slots, 4] int64   where the row's A and B of each product lie in the arena, and their rank; 0: the row has none
    lanes  [B] int32            row slot of each lane of a step; lanes that nobody uses name the last slot, which is always done
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_BYTES = 4
INT_COLUMNS, STOP_COLUMNS, CUT_COLUMNS, LORA_COLUMNS = 8, 16, 4, 4
TOKEN, POSITION, IS_DONE, TOP_K, SEED = range(5)  # columns of ints
TEMPERATURE, TOP_P, MIN_P = range(3)  # columns of cuts
PREFILL_TILE = 64  # rows of an attention tile where rows have many tokens
MAX_HEAD_DIM = 256  # a tile with wider heads does not fit into shared memory
FIXED_SPLITS, LEAST_CHUNK = 8, 512  # where bits must not depend on the batch: splits of a row, and keys of one
EXPERT_TILES = (16, 32, 64)
NOT_FINITE, UNUSED = -2, -1  # in place of a drawn token
QUANTIZED = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # the largest value of each kind


@dataclass(frozen=True, slots=True)
class KvShape:
    """Keys and values of one layer in one page."""

    page_tokens: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype  # as they are stored

    @property
    def is_quantized(self) -> bool:
        """Whether there are scales."""
        return self.dtype in QUANTIZED

    @property
    def half_items(self) -> int:
        """Items of the keys, or of the values."""
        return self.num_kv_heads * self.page_tokens * self.head_dim

    @property
    def values_bytes(self) -> int:
        """Where scales begin in a layer's part."""
        return 2 * self.half_items * self.dtype.itemsize

    @property
    def layer_bytes(self) -> int:
        """A layer's part of a frame, a multiple of 16."""
        scales = 2 * self.num_kv_heads * self.page_tokens * SCALE_BYTES if self.is_quantized else 0
        return -(-(self.values_bytes + scales) // 16) * 16


@dataclass(frozen=True, slots=True)
class LayerKv:
    """One layer's keys and values in the arena."""

    arena: Tensor  # [arena_bytes] uint8, all of it
    granule_bytes: int
    start: int  # byte of this layer's part in a frame
    shape: KvShape

    def items(self) -> tuple[Tensor, int, int]:
        """The arena as items of this layer's dtype, items from frame to frame, and where the layer begins in a frame."""
        size = self.shape.dtype.itemsize
        return self.arena.view(self.shape.dtype), self.granule_bytes // size, self.start // size

    def scales(self) -> tuple[Tensor, int, int]:
        """The same for scales; the keys' come first."""
        start = (self.start + self.shape.values_bytes) // SCALE_BYTES if self.shape.is_quantized else 0
        return self.arena.view(torch.float32), self.granule_bytes // SCALE_BYTES, start


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads. Query heads are group-major: head h reads KV head h % num_kv_heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step as kernels see them. Everything lies on the device.

    A row with a count of 0 is a lane that nobody uses: it reads and writes no page.
    """

    tokens: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int32: row slot of each token; -1: of an unused lane
    rows: Tensor  # [R, 4] int32: slot, first token, number of tokens, position of the first
    tiles: Tensor  # [N, 2] int32: row, and which of its tokens come first in the tile
    tile_tokens: int  # most tokens of a tile
    tables: tuple[Tensor, ...]  # of each KV group, [slots, pages] int32

    @property
    def num_tokens(self) -> int:
        """Tokens of the step, unused lanes included."""
        return self.tokens.shape[0]


@dataclass(frozen=True, slots=True)
class LoraPlaces:
    """Where the adapters of a step's rows lie, for one product of one layer."""

    arena: Tensor  # all of it, as items of the compute dtype
    table: Tensor  # [slots, 4] int64: first item of A [rank, in], first item of B transposed [rank, out], rank
    width: int  # no rank is larger


Angles = tuple[Tensor, Tensor]  # cosines and sines, [positions, turned / 2] f32
Norms = tuple[Tensor, Tensor, float, bool]  # weights of queries and of keys [head_dim], epsilon, whether 1 is added to the weights
Place = tuple[Heads, Tensor, StepRows]  # heads, the page tables of the KV group, the step


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What one layer's attention computes."""

    heads: Heads
    scale: float
    softcap: float = 0.0
    window: int = 0  # 0: none
    fixed_chunk: int = 0  # keys of one split, whatever the row's length; 0: chosen on the device, from the length


def tile_tokens(num_queries_per_kv: int, *, is_decode: bool) -> int:
    """Tokens of one row that an attention tile holds: its rows are tokens times the queries of a KV head, made a power of two."""
    return 1 if is_decode else max(1, PREFILL_TILE >> (num_queries_per_kv - 1).bit_length())


def fixed_chunk(max_positions: int) -> int:
    """Keys of a split where the borders of splits depend on nothing but the model: so many that it has `FIXED_SPLITS` at most."""
    return max(LEAST_CHUNK, 1 << (-(-max_positions // FIXED_SPLITS) - 1).bit_length())


def expert_tile(num_pairs: int, num_experts: int) -> int:
    """Tokens of one expert that a tile of a mixture holds, so that most experts need one: `num_pairs` choices that tokens made."""
    return next((rows for rows in EXPERT_TILES[:-1] if num_pairs * 2 <= rows * num_experts), EXPERT_TILES[-1])
