"""Compiles the kernels of the CUDA driver for devices that are not here: `python -m tests.drivers.triton.ahead ARCHITECTURE`.

The launchers are called with tensors that have shapes and no memory, for shapes of real models; what they would launch is written down,
and compiled instead. One line of JSON for each launch: its name, the bytes of shared memory, and the error, if there was one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

from drivers.ops.calls import Activation
from drivers.triton.layout import CUT_COLUMNS, INT_COLUMNS, STOP_COLUMNS, AttentionShape, Heads, KvShape, LayerKv, StepRows, tile_tokens
from drivers.triton.matrix import QuantMatrix
from drivers.triton.table import kernels

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64", torch.int8: "i8", torch.uint8: "u8",
    torch.int32: "i32", torch.int64: "i64", torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")
KERNELS = kernels()
EIGHT_B, ONE_B, GEMMA = Heads(32, 8, 128), Heads(32, 8, 64), Heads(16, 8, 256)


@dataclass
class Launch:
    """What a kernel is compiled for."""

    kernel: JITFunction[Any]
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[tuple[int, ...], Any] = field(default_factory=dict)
    attributes: dict[tuple[int, ...], list[list[Any]]] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for launches that share a binary."""
        return json.dumps([self.kernel.__name__, self.signature, [(idx[0], str(v)) for idx, v in self.constants.items()], self.options])


def recorded(run: Callable[[], object]) -> list[Launch]:
    """What `run` would launch."""
    launches: list[Launch] = []

    def getitem(kernel: JITFunction[Any], _grid: object) -> Callable[..., None]:
        return lambda *args, **options: launches.append(_launch(kernel, args, options))

    real, JITFunction.__getitem__ = JITFunction.__getitem__, getitem  # type: ignore[assignment, method-assign]
    try:
        run()
    finally:
        JITFunction.__getitem__ = real  # type: ignore[method-assign]
    return launches


def _launch(kernel: JITFunction[Any], args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    launch = Launch(kernel, options={name: options.pop(name) for name in OPTIONS if name in options})
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    for idx, name in enumerate(kernel.arg_names):
        value = values[name]
        if kernel.params[idx].is_constexpr or (isinstance(value, int) and value == 1):
            launch.signature[name] = "constexpr"
            launch.constants[(idx,)] = value
            continue
        launch.signature[name] = _type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            launch.attributes[(idx,)] = [["tt.divisibility", 16]]
    return launch


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if abs(value) < 1 << 31 else "i64"
    return "fp32"


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def attention(
    heads: Heads, kv_dtype: torch.dtype, rows: tuple[int, int], window: int = 0, softcap: float = 0.0, chunk: int = 0
) -> Iterator[Launch]:
    """`rows`: how many, and the tokens of each; in bfloat16."""
    shape = KvShape(16, heads.num_kv_heads, heads.head_dim, kv_dtype)
    kv = LayerKv(meta(1 << 36, dtype=torch.uint8), 1 << 16, 3 * shape.layer_bytes, shape)
    tokens = rows[0] * rows[1]
    step = steps(rows[0], rows[1], tile_tokens(heads.num_queries_per_kv, is_decode=rows[1] == 1))
    qkv = meta(tokens, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim, dtype=torch.bfloat16)
    queries = qkv.view(tokens, -1, heads.head_dim)[:, : heads.num_heads]
    table, asked = step.tables[0], AttentionShape(heads, heads.head_dim**-0.5, softcap, window, chunk)
    yield from recorded(lambda: KERNELS.paged_attention(queries, kv, table, step, asked))
    angles = (meta(4096, heads.head_dim // 2, dtype=torch.float32),) * 2
    norms = (meta(heads.head_dim, dtype=torch.bfloat16),) * 2
    yield from recorded(lambda: KERNELS.rope_kv_write(qkv, angles, (*norms, 1e-6, False), kv, (heads, table, step)))
    yield from recorded(lambda: KERNELS.rope_kv_write(qkv, angles, None, kv, (heads, table, step)))
    cuts = meta(3, 2, dtype=torch.int64)
    yield from recorded(lambda: KERNELS.clear_tails(kv.arena, 1 << 16, shape, 32, cuts))


def steps(num_rows: int, count: int, at_once: int) -> StepRows:
    """A step of rows with that many tokens each."""
    tokens = num_rows * count
    return StepRows(
        meta(tokens, dtype=torch.int64), meta(tokens, dtype=torch.int64), meta(tokens, dtype=torch.int32),
        meta(num_rows, 4, dtype=torch.int32),
        meta(num_rows * -(-count // at_once), 2, dtype=torch.int32), at_once, (meta(257, 2048, dtype=torch.int32),),
    )  # fmt: skip


def linears(bits: int, group: int, tokens: int, has_bias: bool) -> Iterator[Launch]:
    """A linear of the 8B shape, for few tokens and for many, and the embedding."""
    columns = 4096
    scales = meta(6144, columns // group if group else 1, dtype=torch.float16 if group else torch.float32)
    matrix = QuantMatrix(meta(6144, columns * bits // 8, dtype=torch.uint8), scales, None, columns, group, bits)
    x, bias = meta(tokens, columns, dtype=torch.bfloat16), meta(6144, dtype=torch.bfloat16)
    yield from recorded(lambda: KERNELS.quant_linear(x, matrix, bias if has_bias else None))
    yield from recorded(lambda: KERNELS.dequantize(matrix, torch.bfloat16, None))
    yield from recorded(lambda: KERNELS.dequantize(matrix, torch.bfloat16, meta(7, dtype=torch.int64)))


def rest() -> Iterator[Launch]:
    """Kernels whose shapes do not matter."""
    x, weight = meta(8, 4096, dtype=torch.bfloat16), meta(4096, dtype=torch.bfloat16)
    yield from recorded(lambda: KERNELS.rms_norm(x, weight, 1e-6, True))
    yield from recorded(lambda: KERNELS.add_rms_norm(x, x, weight, (1e-6, False)))
    for function in Activation:
        yield from recorded(lambda function=function: KERNELS.act_mul(x, function))
    lanes, ints, cuts = meta(8, dtype=torch.int32), meta(257, INT_COLUMNS, dtype=torch.int64), meta(257, CUT_COLUMNS, dtype=torch.float64)
    logits = meta(8, 128256, dtype=torch.bfloat16)
    yield from recorded(lambda: KERNELS.sample(logits, lanes, ints, cuts, lanes))
    yield from recorded(lambda: KERNELS.prepare(lanes, ints, steps(8, 1, 1)))
    yield from recorded(lambda: KERNELS.append(lanes, lanes, ints, meta(257, STOP_COLUMNS, dtype=torch.int64)))
    arena, pairs = meta(1 << 36, dtype=torch.uint8), meta(3, 2, dtype=torch.int64)
    yield from recorded(lambda: KERNELS.copy_frames(arena, 1 << 16, 1 << 21, pairs))
    yield from recorded(lambda: KERNELS.zero_frames(arena, 1 << 16, 1 << 21, pairs[:, 0]))


def launches(architecture: int) -> Iterator[Launch]:
    """Everything that is compiled for an architecture: all for sm_90, for others what differs there. Pages of 8-bit floats need sm_89."""
    if architecture < 90:
        yield from attention(EIGHT_B, torch.bfloat16, (1, 512))
        yield from attention(GEMMA, torch.bfloat16, (2, 64), window=1024, softcap=50.0)
        yield from attention(EIGHT_B, torch.int8, (32, 1))
        yield from linears(4, 32, 64, True)
        return
    yield from rest()
    yield from attention(EIGHT_B, torch.bfloat16, (1, 1))
    yield from attention(EIGHT_B, torch.bfloat16, (256, 1))
    yield from attention(EIGHT_B, torch.bfloat16, (1, 512))
    yield from attention(EIGHT_B, torch.bfloat16, (2, 64), chunk=1024)
    yield from attention(ONE_B, torch.bfloat16, (32, 1))
    yield from attention(GEMMA, torch.bfloat16, (2, 64), window=1024, softcap=50.0)
    yield from attention(EIGHT_B, torch.int8, (32, 1))
    yield from attention(EIGHT_B, torch.float8_e4m3fn, (2, 64))
    for bits, group, tokens, has_bias in ((8, 0, 1, False), (8, 0, 64, True), (4, 32, 16, False), (4, 128, 32, False)):
        yield from linears(bits, group, tokens, has_bias)


def compiled(architecture: int, idx: int) -> str:
    """Compile one of the launches; answers its line."""
    launch = distinct(architecture)[idx]
    constants = {launch.kernel.arg_names[place[0]]: str(value) for place, value in launch.constants.items()}
    told: dict[str, object] = {"name": launch.kernel.__name__, "constants": constants}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    try:
        binary = compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
        told |= {"shared": binary.metadata.shared, "error": ""}
    except Exception as error:  # noqa: BLE001  (whatever it is, it is told)
        told |= {"shared": 0, "error": f"{type(error).__name__}: {error}"}
    return json.dumps(told)


def distinct(architecture: int) -> list[Launch]:
    """The launches that differ."""
    return list({launch.key: launch for launch in launches(architecture)}.values())


def main(architecture: int) -> None:
    """Compile everything, on two processes."""
    num = len(distinct(architecture))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for line in pool.map(compiled, [architecture] * num, range(num)):
            print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
