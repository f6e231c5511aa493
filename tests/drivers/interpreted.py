"""The kernels of the CUDA driver in Triton's interpreter, on ordinary tensors. It is chosen when Triton is imported, so this comes first.

Nothing else in the tests imports Triton, but in processes of its own.
"""

from __future__ import annotations

import os
import sys

assert "triton" not in sys.modules, "Triton was imported before the interpreter was chosen"
os.environ["TRITON_INTERPRET"] = "1"

from drivers.triton.table import kernels  # noqa: E402

KERNELS = kernels()  # every kernel is decorated now
