"""Kernels run in Triton's interpreter here; see `tests.drivers.interpreted`. The compiler's tests run in a process of their own."""

from __future__ import annotations

from tests.drivers.interpreted import KERNELS

assert KERNELS
