"""`cpu/linear.cc`, `prepare.cc` and `pack.cc` as Python sees them: matrices in panels, and linears over them on the calling thread.

A `Panels` is one matrix of a part in the arena (`drivers.models.storage`), or one that was packed here. Calls run without the interpreter's
lock; who packs one matrix on several threads gives each of them other rows. Results are those of the engine, bit for bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from drivers.models.storage import PANEL_ROWS, Storage, places_of
from drivers.native.build import cpu_library
from drivers.native.records import KINDS

SOURCES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Source in cpu/pack.cc


class Matrix(ctypes.Structure):
    """`struct Matrix` in cpu/kernels.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class Panels:
    """A matrix `[rows, columns]` in panels; `bytes` are all of the part that it belongs to."""

    storage: Storage
    shape: tuple[int, ...]  # of the part: [rows, columns] or [matrices, rows, columns]
    bytes: Tensor  # uint8
    index: int = 0  # which of the part's matrices

    @property
    def rows(self) -> int:
        """Outputs, without padding."""
        return self.shape[-2]

    @property
    def columns(self) -> int:
        """Inputs, without padding."""
        return self.shape[-1]

    @property
    def num_panels(self) -> int:
        """Of sixteen rows each."""
        return -(-self.rows // PANEL_ROWS)

    def record(self) -> Matrix:
        """As the library is told of it."""
        places, start = places_of(self.storage, self.shape), self.bytes.data_ptr()
        scales = start + places.scales_start + self.index * places.scales_bytes
        offsets = start + places.offsets_start + self.index * places.offsets_bytes
        return Matrix(
            kind=KINDS[self.storage.kind],
            rows=self.rows,
            columns=self.columns,
            group=self.storage.group,
            values=start + self.index * places.values_bytes,
            scales=scales if self.storage.is_quantized else None,
            offsets=offsets if self.storage.has_offsets else None,
        )


def empty_panels(storage: Storage, rows: int, columns: int) -> Panels:
    """Room for a matrix, not written yet."""
    storage = replace(storage, is_panels=True)
    size = places_of(storage, (rows, columns)).size_bytes
    padded = torch.empty(size + 63, dtype=torch.uint8)
    start = -padded.data_ptr() % 64
    return Panels(storage, (rows, columns), padded[start : start + size])


class NativeLinears:
    """The library, loaded."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        matrix, pointer, size, integer = ctypes.POINTER(Matrix), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
        self._library = loaded
        loaded.kd_pack.argtypes = (matrix, integer, integer, pointer, ctypes.c_int64, integer)
        loaded.kd_pack_codes.argtypes = (matrix, integer, integer, pointer, ctypes.c_int64, pointer, pointer)
        loaded.kd_unpack.argtypes = (matrix, integer, integer, pointer, ctypes.c_int64)
        loaded.kd_turn.argtypes = (pointer, size, size, pointer)
        loaded.kd_prepared_bytes.argtypes = (matrix, integer)
        loaded.kd_prepared_bytes.restype = size
        loaded.kd_prepare.argtypes = (matrix, pointer, size, integer, pointer)
        loaded.kd_linear.argtypes = (matrix, pointer, integer, integer, integer, pointer, pointer, size, ctypes.c_bool)
        for function in (loaded.kd_pack, loaded.kd_pack_codes, loaded.kd_unpack, loaded.kd_turn, loaded.kd_prepare, loaded.kd_linear):
            function.restype = None

    def pack(self, panels: Panels, weight: Tensor, first_row: int = 0) -> None:
        """Write rows `[n, columns]` of floats from `first_row` (which begins a panel) on, in the kind of the matrix.

        Integers are symmetric; those of 4 bits have the scale of least squared error that a search near the largest magnitude finds.
        """
        _check_rows(panels, weight, first_row)
        assert not panels.storage.has_offsets
        end = first_row + len(weight)
        self._library.kd_pack(panels.record(), first_row, end, weight.data_ptr(), weight.stride(0), SOURCES[weight.dtype])

    def pack_codes(self, panels: Panels, codes: Tensor, scales: Tensor, offsets: Tensor | None = None, first_row: int = 0) -> None:
        """Write rows of integers `codes [n, columns] uint8`, one in a byte, with float32 scales and offsets `[n, groups]`."""
        _check_rows(panels, codes, first_row)
        assert codes.dtype == torch.uint8
        assert (offsets is not None) == panels.storage.has_offsets
        groups = places_of(panels.storage, panels.shape).groups
        for table in (scales,) if offsets is None else (scales, offsets):
            assert (table.dtype, table.shape, table.is_contiguous()) == (torch.float32, (len(codes), groups), True)
        end, there = first_row + len(codes), None if offsets is None else offsets.data_ptr()
        self._library.kd_pack_codes(panels.record(), first_row, end, codes.data_ptr(), codes.stride(0), scales.data_ptr(), there)

    def turn(self, rows: Tensor, out: Tensor) -> None:
        """Write rows `[n, bytes] uint8` of whole 32-bit units as panels to `out`, whose last panel is filled up with zeros."""
        assert rows.is_contiguous()
        assert rows.shape[1] % 4 == 0
        assert out.numel() >= -(-len(rows) // PANEL_ROWS) * PANEL_ROWS * rows.shape[1]
        self._library.kd_turn(rows.data_ptr(), len(rows), rows.shape[1] // 4, out.data_ptr())

    def unpack(self, panels: Panels, first_row: int = 0, end_row: int | None = None) -> Tensor:
        """Rows as floats `[n, columns] float32`; a new tensor."""
        end = panels.rows if end_row is None else end_row
        out = torch.empty(end - first_row, panels.columns)
        self._library.kd_unpack(panels.record(), first_row, end, out.data_ptr(), panels.columns)
        return out

    def prepare(self, panels: Panels, x: Tensor) -> Tensor:
        """Inputs `x [T, columns] float32` as the kernel of this matrix wants them. Matrices of the same form and width share them."""
        assert x.dtype == torch.float32
        assert x.shape[1] == panels.columns
        assert x.stride(1) == 1
        record = panels.record()
        prepared = torch.empty(self._library.kd_prepared_bytes(record, len(x)), dtype=torch.uint8)
        self._library.kd_prepare(record, x.data_ptr(), x.stride(0), len(x), prepared.data_ptr())
        return prepared

    def linear(self, panels: Panels, prepared: Tensor, out: Tensor, bias: Tensor | None = None, *, adds: bool = False) -> None:
        """Write `x W^T [+ bias]` to `out [T, rows] float32`, or add it there."""
        self.linear_of(panels, (0, panels.num_panels), prepared, out, bias, adds=adds)

    def linear_of(
        self, panels: Panels, span: tuple[int, int], prepared: Tensor, out: Tensor, bias: Tensor | None = None, *, adds: bool = False
    ) -> None:
        """The outputs of panels [first, end) only."""
        assert out.dtype == torch.float32
        assert out.shape[1] == panels.rows
        assert out.stride(1) == 1
        there = None if bias is None else bias.data_ptr()
        self._library.kd_linear(
            panels.record(), prepared.data_ptr(), len(out), span[0], span[1], there, out.data_ptr(), out.stride(0), adds
        )


def _check_rows(panels: Panels, rows: Tensor, first_row: int) -> None:
    end = first_row + len(rows)
    assert first_row % PANEL_ROWS == 0
    assert end % PANEL_ROWS == 0 or end == panels.rows
    assert end <= panels.rows
    assert rows.shape[1] == panels.columns
    assert rows.stride(1) == 1


@cache
def native_linears(level: str = "") -> NativeLinears | None:
    """The library, or None where it cannot be built (`drivers.native.build.cpu_library` says why)."""
    loaded = cpu_library(level).library
    return NativeLinears(loaded) if loaded is not None else None
