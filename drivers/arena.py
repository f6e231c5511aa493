"""The memory of the CPU device: one buffer taken at open, touched, and lent out as views.

    arena     |<------------------- num_slabs * slab_bytes ------------------->|
    granules  |0|1|2|3|...                    frame f starts at granule f
    frame     | layer 0 | layer 1 | ... | slack |
    layer     | page_tokens x [2, kv_heads, head_dim] |                     as torch runs it
              | keys | values | scales of keys | scales of values |         in lanes, as native code does (native/cpu/kernels.h, Pages)

Slabs can be given back to the machine and taken again (`memory`); views of the others do not notice.

Invariants
1. The buffer never moves and never grows; a view of it is good until `close`.
2. Nothing here is shared with the host tier: pages move by copying.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from drivers.slab_memory import PlainMemory

SCALE_BYTES = 4
WORD_BYTES = 4  # of one token's key that lie side by side in lanes
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class FrameShape:
    """A frame of one KV group as the CPU driver lays it out."""

    num_layers: int
    page_tokens: int
    num_kv_heads: int
    head_dim: int
    size_bytes: int  # whole granules
    dtype: torch.dtype  # uint8: eight bits a value, with a scale for each token and head
    is_in_lanes: bool = False

    @property
    def items_per_token(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def scale_bytes(self) -> int:
        """Scales of one layer: two for each token and KV head."""
        return 0 if self.dtype.is_floating_point else 2 * SCALE_BYTES * self.page_tokens * self.num_kv_heads

    @property
    def layer_bytes(self) -> int:
        """One layer's part."""
        return self.page_tokens * self.items_per_token * self.dtype.itemsize + self.scale_bytes


def device_bytes() -> int:
    """Memory of this machine, or of the control group that confines this process."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no limit ("max"), or no such file
        return total


class Arena:
    """All of the device memory that the driver holds."""

    def __init__(self, size_bytes: int, granule_bytes: int, slab_bytes: int = 0) -> None:
        """Take and touch the memory, in slabs (0: in one). Raises: DeviceOutOfMemory."""
        self.memory = PlainMemory(size_bytes // (slab_bytes or size_bytes), slab_bytes or size_bytes)
        self.granule_bytes = granule_bytes
        self.size_bytes = size_bytes
        self.bytes = torch.frombuffer(self.memory.buffer, dtype=torch.uint8)
        self.bytes.zero_()  # touches every page, on all threads: fresh pages in the middle of a step would cost six times the copy
        self._array: np.ndarray = self.bytes.numpy()

    def num_frames(self, frame_bytes: int) -> int:
        """Frames of that size lie in [0, num_frames)."""
        return (self.size_bytes - frame_bytes) // self.granule_bytes + 1

    def frame(self, frame: int, frame_bytes: int) -> memoryview:
        """The bytes of one frame, writable."""
        start = frame * self.granule_bytes
        return self._array[start : start + frame_bytes].data

    def span(self, start: int, size_bytes: int) -> memoryview:
        """Bytes of the arena, writable."""
        return self._array[start : start + size_bytes].data

    def frames(self, frame_bytes: int) -> Tensor:
        """Whole frames of that size, `[num_frames, frame_bytes] uint8`; consecutive ones overlap."""
        return self.bytes.as_strided((self.num_frames(frame_bytes), frame_bytes), (self.granule_bytes, 1))

    def layer_pages(self, shape: FrameShape, layer: int) -> Tensor:
        """One layer's part of every frame, `[num_frames, page_tokens, 2, kv_heads, head_dim]`; `layer` counts within the group."""
        items = shape.items_per_token
        return self.bytes.view(shape.dtype).as_strided(
            (self.num_frames(shape.size_bytes), shape.page_tokens, 2, shape.num_kv_heads, shape.head_dim),
            (self.granule_bytes // shape.dtype.itemsize, items, items // 2, shape.head_dim, 1),
            layer * shape.page_tokens * items,
        )

    def token_views(self, shape: FrameShape) -> tuple[Tensor, ...]:
        """All that belongs to tokens, each view `[num_frames, num_layers, parts, page_tokens, items]`."""
        page, heads, items = shape.page_tokens, shape.num_kv_heads, shape.items_per_token
        if not shape.is_in_lanes:
            return (self._tokens(shape, shape.dtype, (1, page, items), 0),)
        half = page * items // 2 * shape.dtype.itemsize
        word = WORD_BYTES // shape.dtype.itemsize
        keys = self._tokens(shape, shape.dtype, (heads * shape.head_dim // word, page, word), 0)
        values = self._tokens(shape, shape.dtype, (heads, page, shape.head_dim), half)
        if not shape.scale_bytes:
            return keys, values
        return keys, values, self._tokens(shape, torch.float32, (2 * heads, page, 1), 2 * half)

    def clear_tail(self, shape: FrameShape, frame: int, num_tokens: int) -> None:
        """Zero what lies behind the first `num_tokens` tokens of a page, in every layer."""
        for view in self.token_views(shape):
            view[frame, :, :, num_tokens:].zero_()

    def _tokens(self, shape: FrameShape, dtype: torch.dtype, inner: tuple[int, int, int], start: int) -> Tensor:
        """A part of every layer that begins `start` bytes behind the layer's own start and lies in one piece."""
        _, page, items = inner
        return self.bytes.view(dtype).as_strided(
            (self.num_frames(shape.size_bytes), shape.num_layers, *inner),
            (self.granule_bytes // dtype.itemsize, shape.layer_bytes // dtype.itemsize, page * items, items, 1),
            start // dtype.itemsize,
        )

    def close(self) -> None:
        """Forget the buffer; it is unmapped when the last view is gone."""
        self.memory.close()
        self._array = np.empty(0, dtype=np.uint8)
        self.bytes = torch.empty(0, dtype=torch.uint8)
