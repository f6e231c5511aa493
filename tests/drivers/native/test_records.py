"""What Python and the native sources both write down: structures field by field, enumerations name by name, constants."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch

from drivers.models.storage import Kind
from drivers.native import attention, linears, lora, records, rows
from drivers.native.build import SOURCES
from drivers.native.program import NATIVE_OPS

NAMES = ("cpu/kernels.h", "cpu/program.h", "cpu/engine.h", "cpu/sampling.h", "cpu/calls.cc", "lora.c")
HEADERS = {name: (SOURCES / name).read_text() for name in NAMES}
TYPES: dict[str, type[ctypes._SimpleCData[object]]] = {  # type: ignore[type-arg]
    **dict.fromkeys(("int32_t", "Code", "Norm", "Epilogue", "Activation", "Kind"), ctypes.c_int32),
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "size_t": ctypes.c_size_t,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
}
NESTED = {"Vector": records.VectorRecord, "Weight": records.WeightRecord}
STRUCTURES: list[tuple[str, str, type[ctypes.Structure]]] = [
    ("cpu/program.h", "Vector", records.VectorRecord),
    ("cpu/program.h", "Weight", records.WeightRecord),
    ("cpu/program.h", "Op", records.OpRecord),
    ("cpu/program.h", "GroupShape", records.GroupRecord),
    ("cpu/program.h", "ModelShape", records.ShapeRecord),
    ("cpu/program.h", "Step", records.StepRecord),
    ("cpu/program.h", "Arena", records.ArenaRecord),
    ("cpu/engine.h", "OpTimes", records.TimesRecord),
    ("cpu/sampling.h", "Draw", records.DrawRecord),
    ("cpu/sampling.h", "Drawn", records.DrawnRecord),
    ("cpu/sampling.h", "Rows", records.RowsRecord),
    ("cpu/kernels.h", "Matrix", linears.Matrix),
    ("cpu/kernels.h", "Pages", attention.Pages),
    ("cpu/kernels.h", "AttentionRow", attention.AttentionRow),
    ("cpu/kernels.h", "AttentionSettings", attention.AttentionSettings),
    ("cpu/kernels.h", "AttentionValues", attention.AttentionValues),
    ("cpu/kernels.h", "RopeSettings", attention.RopeSettings),
    ("cpu/calls.cc", "RowCall", rows.RowCall),
]


def body_of(kind: str, name: str, source: str) -> str:
    """What stands between the braces, without comments."""
    found = re.search(rf"{kind} {name}(?: : \w+)? {{(.*?)}};", source, re.DOTALL)
    assert found, f"there is no {kind} {name}"
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", found[1], flags=re.DOTALL)


def fields_of(body: str) -> list[tuple[str, object]]:
    """Names and types, in order; every pointer is `void *`."""
    fields: list[tuple[str, object]] = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, first, *others = re.split(r"\s+(?=[*\w]+(?:,|$))|,\s*", declaration)
        for name in (first, *others):
            is_pointer = "*" in kind + name
            fields.append((name.lstrip("*"), "pointer" if is_pointer else TYPES.get(kind) or NESTED[kind]))
    return fields


@pytest.mark.parametrize(("source", "name", "structure"), STRUCTURES, ids=[name for _, name, _ in STRUCTURES])
def test_structures_have_the_same_fields_in_the_same_order(source: str, name: str, structure: type[ctypes.Structure]) -> None:
    pointers = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
    ours = [(field[0], "pointer" if field[1] in pointers else field[1]) for field in structure._fields_]

    assert ours == fields_of(body_of("struct", name, HEADERS[source]))


def numbers_of(source: str, name: str) -> dict[str, int]:
    """The names of an enumeration, and what they stand for."""
    items = [item.strip() for item in body_of("enum class", name, HEADERS[source]).split(",")]
    named = [item.partition(" = ") for item in filter(None, items)]
    return {name: int(number or idx) for idx, (name, _, number) in enumerate(named)}


@pytest.mark.parametrize(
    ("source", "name", "ours"),
    [
        ("cpu/program.h", "Code", {each.name.lower(): each.value for each in records.Code}),
        ("cpu/program.h", "Norm", {each.name.lower(): each.value for each in records.Norm}),
        ("cpu/program.h", "Epilogue", {each.name.lower(): each.value for each in records.Epilogue}),
        ("cpu/kernels.h", "Activation", {each.name.lower(): number for each, number in records.ACTIVATIONS.items()}),
        ("cpu/kernels.h", "Kind", dict(zip(("f32", "bf16", "u8", "u4", "f8"), records.KINDS.values(), strict=True))),
        ("cpu/calls.cc", "RowOp", {name: idx for idx, name in enumerate(rows.OPS)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_enumerations_have_the_same_numbers(source: str, name: str, ours: dict[str, int]) -> None:
    assert ours == numbers_of(source, name)


def test_pages_have_the_kinds_of_matrices() -> None:
    assert list(records.KINDS) == [Kind.FLOAT32, Kind.BFLOAT16, Kind.INT8, Kind.INT4, Kind.FLOAT8]
    assert list(attention.KINDS.items()) == [(torch.float32, 0), (torch.bfloat16, 1), (torch.int8, 2), (torch.float8_e4m3fn, 4)]


def test_an_adapter_has_as_many_blocks_and_bytes() -> None:
    block, pair = (body_of("struct", name, HEADERS["cpu/program.h"]) for name in ("LoraBlock", "LoraPair"))

    assert f"blocks[{lora.MAX_BLOCKS}]" in pair
    assert f"#define MAX_BLOCKS {lora.MAX_BLOCKS}" in HEADERS["lora.c"]
    assert block.split() == body_of("struct", "block", HEADERS["lora.c"]).split()


def test_there_is_a_place_for_the_times_of_every_op() -> None:
    assert f"MAX_PROFILED = {records.MAX_PROFILED};" in HEADERS["cpu/engine.h"]
    assert len(NATIVE_OPS) <= records.MAX_PROFILED
