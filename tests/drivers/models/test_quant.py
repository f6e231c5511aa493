"""Quantized checkpoints against dequantizations in float64, written here from the specifications of the formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.runtime import Runtime
from drivers.models.storage import Kind
from tests.drivers.models.checkpoint_rig import Array, Store, expected, load, open_files, write_checkpoint

LINEAR = "model.layers.0.mlp.down_proj"
Change = Mapping[str, Array | None]
RUNTIMES = [Runtime(torch.float32), Runtime(torch.float32, is_native=True)]


def pack(values: Array, bits: int, order: tuple[int, ...] | None = None) -> Array:
    """Unsigned values along the first axis into 32-bit words, the lowest bits first; `order[i]` is the value at place i of a word."""
    per_word = 32 // bits
    words = np.zeros((values.shape[0] // per_word, *values.shape[1:]), np.uint64)
    for place in range(per_word):
        words |= values[(order[place] if order else place) :: per_word].astype(np.uint64) << np.uint64(bits * place)
    return words.astype(np.uint32).view(np.int32)


def scales_for(random: np.random.Generator, shape: tuple[int, int], dtype: type[np.floating] = np.float16) -> Array:
    """Scales of a plausible size."""
    return (random.uniform(0.5, 2.0, shape) * 0.01).astype(dtype)


def gptq(bits: int, group: int, is_symmetric: bool = True, is_ordered: bool = False, shift: int = 1) -> Store:
    """A linear as GPTQ stores it."""

    def store(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
        size = columns if group == -1 else group
        groups = -(-columns // size)
        q = random.integers(0, 1 << bits, (columns, rows))
        zeros = np.full((groups, rows), 1 << (bits - 1)) if is_symmetric else random.integers(0, 1 << bits, (groups, rows))
        scales = scales_for(random, (groups, rows))
        at = np.arange(columns) // size
        if is_ordered:
            at = random.permutation(at)
        stored = {
            "qweight": pack(q, bits),
            "qzeros": pack((zeros - shift).T & ((1 << bits) - 1), bits).T,
            "scales": scales,
            "g_idx": at.astype(np.int32),
        }
        return stored, (scales.astype(np.float64)[at] * (q - zeros[at])).T

    return store


def awq(group: int) -> Store:
    """A linear as AWQ's gemm stores it."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def store(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
        size = columns if group == -1 else group
        groups, at = -(-columns // size), np.arange(columns) // size
        q, zeros = random.integers(0, 16, (columns, rows)), random.integers(0, 16, (groups, rows))
        scales = scales_for(random, (groups, rows))
        stored = {"qweight": pack(q.T, 4, order).T, "qzeros": pack(zeros.T, 4, order).T, "scales": scales}
        return stored, (scales.astype(np.float64)[at] * (q - zeros[at])).T

    return store


def w8a8(is_symmetric: bool = True, is_tensor: bool = False) -> Store:
    """A linear as compressed-tensors' int-quantized stores it."""

    def store(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
        q = random.integers(-128, 128, (rows, columns))
        scales = scales_for(random, (1, 1) if is_tensor else (rows, 1), np.float32)
        zeros = np.zeros_like(scales, np.int64) if is_symmetric else random.integers(-20, 20, scales.shape)
        stored: dict[str, Array] = {"weight": q.astype(np.int8), "weight_scale": scales[0] if is_tensor else scales}
        if not is_symmetric:
            stored["weight_zero_point"] = zeros.astype(np.int8)
        return stored, scales.astype(np.float64) * (q - zeros)

    return store


def w4a16(group: int, is_symmetric: bool = True, is_ordered: bool = False, bits: int = 4) -> Store:
    """A linear as compressed-tensors' pack-quantized stores it."""
    middle = 1 << (bits - 1)

    def store(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
        size = columns if group == -1 else group
        groups, at = -(-columns // size), np.arange(columns) // size
        if is_ordered:
            at = random.permutation(at)
        q = random.integers(-middle, middle, (rows, columns))
        scales = scales_for(random, (rows, groups))
        zeros = np.zeros((rows, groups), np.int64) if is_symmetric else random.integers(-middle, middle, (rows, groups))
        stored: dict[str, Array] = {
            "weight_packed": pack((q + middle).T, bits).T,
            "weight_scale": scales,
            "weight_shape": np.array([rows, columns]),
        }
        if not is_symmetric:
            stored["weight_zero_point"] = pack(zeros + middle, bits)
        if is_ordered:
            stored["weight_g_idx"] = at.astype(np.int32)
        return stored, scales.astype(np.float64)[:, at] * (q - zeros[:, at])

    return store


def fp8(block: tuple[int, int], name: str = "weight_scale_inv") -> Store:
    """A linear of 8-bit floats."""

    def store(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
        codes = random.integers(0, 256, (rows, columns)).astype(np.uint8)
        codes[(codes & 127) == 127] = 0  # not numbers
        values = torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
        high, wide = (rows if block[0] == -1 else block[0]), (columns if block[1] == -1 else block[1])
        scales = scales_for(random, (-(-rows // high), -(-columns // wide)), np.float32)
        whole = scales.astype(np.float64).repeat(high, 0).repeat(wide, 1)[:rows, :columns]
        return {"weight": codes, name: scales}, values * whole

    return store


def compressed(form: str, **weights: object) -> dict[str, object]:
    """A configuration as compressed-tensors writes it."""
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False, "observer": "minmax", **weights}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def gptq_config(**changes: object) -> dict[str, object]:
    """A configuration as GPTQModel writes it."""
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "damp_percent": 0.01, **changes}


AWQ: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FP8: dict[str, object] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
PACKED = {"num_bits": 4, "strategy": "group", "group_size": 32}
# Configuration, what it stores, and what `down` becomes in the arena.
CASES: dict[str, tuple[Mapping[str, object], Store, str]] = {
    "gptq": (gptq_config(), gptq(4, 32), "int4 in groups of 32"),
    "gptq of 8 bits": (gptq_config(bits=8, group_size=64), gptq(8, 64), "int8 in groups of 64"),
    "gptq with zero points": (gptq_config(sym=False), gptq(4, 32, is_symmetric=False), "int4 in groups of 32 with offsets"),
    "gptq v2": (
        gptq_config(sym=False, checkpoint_format="gptq_v2"),
        gptq(4, 32, is_symmetric=False, shift=0),
        "int4 in groups of 32 with offsets",
    ),
    "gptq by row": (gptq_config(group_size=-1), gptq(4, -1), "int4"),
    "gptq in groups of heads": (gptq_config(group_size=64), gptq(4, 64), "int4 in groups of 64"),
    "gptq in small groups": (gptq_config(group_size=16), gptq(4, 16), "float32"),
    "gptq with a rest": (gptq_config(group_size=128), gptq(4, 128), "float32"),
    "awq with a rest": ({**AWQ, "group_size": 128}, awq(128), "float32"),
    "w4a16 with a rest": (compressed("pack-quantized", num_bits=4, strategy="group", group_size=128), w4a16(128), "float32"),
    "gptq out of order": (gptq_config(sym=False, desc_act=True), gptq(4, 32, is_symmetric=False, is_ordered=True), "float32"),
    "awq": (AWQ, awq(32), "int4 in groups of 32 with offsets"),
    "awq by row": ({**AWQ, "group_size": -1}, awq(-1), "int4 with offsets"),
    "w8a8": (compressed("int-quantized"), w8a8(), "int8"),
    "w8a8 with zero points": (compressed("int-quantized", symmetric=False), w8a8(is_symmetric=False), "int8 with offsets"),
    "w8a8 by tensor": (compressed("int-quantized", strategy="tensor"), w8a8(is_tensor=True), "int8"),
    "w4a16": (compressed("pack-quantized", **PACKED), w4a16(32), "int4 in groups of 32"),
    "w4a16 with zero points": (
        compressed("pack-quantized", **PACKED, symmetric=False),
        w4a16(32, is_symmetric=False),
        "int4 in groups of 32 with offsets",
    ),
    "w4a16 by row": (compressed("pack-quantized", num_bits=4), w4a16(-1), "int4"),
    "w4a16 out of order": (compressed("pack-quantized", **PACKED, actorder="group"), w4a16(32, is_ordered=True), "float32"),
    "w8a16": (compressed("pack-quantized", strategy="group", group_size=32), w4a16(32, bits=8), "int8 in groups of 32"),
    "fp8 in blocks": (FP8, fp8((128, 128)), "float32"),
    "fp8 by row": (compressed("float-quantized", type="float"), fp8((1, -1), "weight_scale"), "float32"),
    "fp8 by tensor": (compressed("float-quantized", type="float", strategy="tensor"), fp8((-1, -1), "weight_scale"), "float32"),
}


@pytest.mark.parametrize("runtime", RUNTIMES, ids=["rows", "panels"])
@pytest.mark.parametrize("case", CASES)
def test_a_quantized_checkpoint_stands_for_the_weights_of_its_specification(case: str, runtime: Runtime, tmp_path: Path) -> None:
    config, store, form = CASES[case]
    written = write_checkpoint(tmp_path, config, store)
    files, (first, layer, last) = load(tmp_path, runtime)
    for name, truth in expected(written.weights).items():
        np.testing.assert_allclose(layer[name].numpy(), truth, rtol=2e-6, atol=2e-7, err_msg=name)
    np.testing.assert_array_equal(first["embedding"], written.weights["model.embed_tokens.weight"])
    np.testing.assert_array_equal(last["head"], written.weights["lm_head.weight"])
    [down] = [part for part in files.segments[1].parts if part.name == "down.weight"]
    assert down.storage.name == form
    assert down.storage.is_panels == runtime.is_native


@pytest.mark.parametrize("case", [case for case, (config, *_) in CASES.items() if config["quant_method"] in ("compressed-tensors", "fp8")])
def test_a_matrix_that_is_read_in_pieces_is_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store, _ = CASES[case]
    written = write_checkpoint(tmp_path, config, store)
    monkeypatch.setattr("drivers.models.placing.PIECE_BYTES", 1 << 10)  # a few rows
    for runtime in RUNTIMES:
        _, (_, layer, _) = load(tmp_path, runtime)
        for name, truth in expected(written.weights).items():
            np.testing.assert_allclose(layer[name].numpy(), truth, rtol=2e-6, atol=2e-7, err_msg=name)


def test_integers_are_kept_as_they_are_and_take_no_more_bytes(tmp_path: Path) -> None:
    config, store, _ = CASES["gptq"]
    write_checkpoint(tmp_path, config, store)
    [down] = [
        part for part in open_files(tmp_path, Runtime(torch.bfloat16, is_native=True)).segments[1].parts if part.name == "down.weight"
    ]
    assert down.places.size_bytes == 128 * 192 // 2 + 128 * 192 // 32 * 2


def test_modules_that_are_left_out_stay_floats(tmp_path: Path) -> None:
    config, store, _ = CASES["w8a8"]
    weight = np.random.default_rng(5).standard_normal((128, 192)).astype(np.float32)
    change = {f"{LINEAR}.weight": weight, f"{LINEAR}.weight_scale": None}
    write_checkpoint(tmp_path, config, store, change)
    files, (_, layer, _) = load(tmp_path, Runtime(torch.float32, is_native=True))
    kinds = {part.name: part.storage.kind for part in files.segments[1].parts}
    assert (kinds["down.weight"], kinds["gate_up.weight"]) == (Kind.FLOAT32, Kind.INT8)
    np.testing.assert_array_equal(layer["down.weight"], weight)


def test_parts_of_modules_that_are_stored_differently_become_floats(tmp_path: Path) -> None:
    config, store, _ = CASES["w8a8"]
    name = "model.layers.0.mlp.up_proj"
    weight = np.random.default_rng(5).standard_normal((192, 128)).astype(np.float32)
    written = write_checkpoint(tmp_path, config, store, {f"{name}.weight": weight, f"{name}.weight_scale": None})
    _, (_, layer, _) = load(tmp_path, Runtime(torch.float32))
    truth = expected({**written.weights, f"{name}.weight": weight.astype(np.float64)})["gate_up.weight"]
    np.testing.assert_allclose(layer["gate_up.weight"].numpy(), truth, rtol=2e-6)


UNSUPPORTED: dict[str, tuple[Mapping[str, object], Store, str]] = {
    "method": ({"quant_method": "quip"}, gptq(4, 32), "quant_method is 'quip'; supported is gptq or awq or fp8 or compressed-tensors"),
    "bits": (gptq_config(bits=3), gptq(4, 32), "bits is 3; supported is 4 or 8"),
    "field": (gptq_config(rotation="hadamard"), gptq(4, 32), "rotation is 'hadamard'"),
    "gptq format": (gptq_config(checkpoint_format="marlin"), gptq(4, 32), "checkpoint_format is 'marlin'"),
    "dynamic": (gptq_config(dynamic={"-:.*": {}}), gptq(4, 32), "dynamic"),
    "awq version": ({**AWQ, "version": "gemv"}, awq(32), "version is 'gemv'"),
    "awq bits": ({**AWQ, "bits": 8}, awq(32), "bits is 8"),
    "fp8 kind": ({**FP8, "fmt": "e5m2"}, fp8((128, 128)), "fmt is 'e5m2'"),
    "fp8 scales": ({**FP8, "scale_fmt": "ue8m0"}, fp8((128, 128)), "scale_fmt is 'ue8m0'"),
    "format": (compressed("nvfp4-pack-quantized"), w8a8(), "format is 'nvfp4-pack-quantized'"),
    "floats of 4 bits": (compressed("float-quantized", type="float", num_bits=4), w8a8(), "num_bits is 4"),
    "strategy": (compressed("int-quantized", strategy="token"), w8a8(), "strategy is 'token'"),
    "weights field": (compressed("int-quantized", mystery=1), w8a8(), "mystery is 1"),
    "not frozen": ({**compressed("int-quantized"), "quantization_status": "frozen"}, w8a8(), "quantization_status"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_no_reader_understands_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, store, message = UNSUPPORTED[case]
    write_checkpoint(tmp_path, config, store)
    with pytest.raises(ModelUnsupported, match=message):
        open_files(tmp_path, Runtime(torch.float32))


def changed(case: str, change: Change, **config: object) -> tuple[Mapping[str, object], Store, Change]:
    """A case with tensors of `down` replaced or left out."""
    fields, store, _ = CASES[case]
    return {**fields, **config}, store, {f"{LINEAR}.{name}": values for name, values in change.items()}


SMALL = np.full((6, 128), 0.01, np.float16)
CORRUPT: dict[str, tuple[tuple[Mapping[str, object], Store, Change], str]] = {
    "another group size": (changed("gptq", {}, group_size=64), r"scales has shape \(.*\); with the module's other tensors"),
    "no scales": (changed("gptq", {"scales": None}), "lack .*down_proj.scales"),
    "no zero points": (changed("awq", {"qzeros": None}), "lack .*down_proj.qzeros"),
    "a strange shape": (changed("awq", {"qweight": np.zeros((192, 15), np.int32)}), "scales has shape"),
    "of another model": (changed("w8a8", {"weight": np.zeros((128, 100), np.int8)}), "shape .*config.json asks for"),
    "no columns": (changed("awq by row", {"qweight": np.zeros((0, 16), np.int32)}), "qweight has no columns"),
    "no groups": (changed("gptq", {}, group_size=0), "group_size is 0"),
    "scales for other blocks": (changed("fp8 in blocks", {}, weight_block_size=[64, 64]), "weight_scale_inv has shape"),
    "scales not finite": (changed("gptq", {"scales": np.where(np.arange(128) == 5, np.nan, SMALL).astype(np.float16)}), "not finite"),
    "fp8 scales not finite": (changed("fp8 in blocks", {"weight_scale_inv": np.full((1, 2), np.inf, np.float32)}), "not finite"),
    "scales not finite by row": (changed("w8a8", {"weight_scale": np.full((128, 1), np.nan, np.float32)}), "not finite"),
    "scales too large": (changed("w4a16", {"weight_scale": np.full((128, 6), 1e6, np.float32)}), "65504"),
    "zero points of sym": (changed("gptq with zero points", {}, sym=True), "zero points than those of sym"),
    "an order that is not said": (changed("gptq", {"g_idx": np.zeros(192, np.int32)}), "out of order"),
    "packed groups that there are not": (
        changed("w4a16 out of order", {"weight_g_idx": np.full(192, 6, np.int32)}),
        "weight_g_idx names groups that there are not",
    ),
    "groups that there are not": (changed("gptq out of order", {"g_idx": np.full(192, 6, np.int32)}), "groups that there are not"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_what_does_not_fit_is_corrupt_and_said_plainly(case: str, tmp_path: Path) -> None:
    (config, store, change), message = CORRUPT[case]
    write_checkpoint(tmp_path, config, store, change)
    with pytest.raises(ModelCorrupt, match=message):
        load(tmp_path, Runtime(torch.float32))


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path: Path) -> None:
    config, store, _ = CASES["gptq"]
    write_checkpoint(tmp_path, config, store)
    with pytest.raises(ModelUnsupported, match=r"quantized already \(gptq int4 in groups of 32\)"):
        open_files(tmp_path, Runtime(torch.float32, quant="int8"))


def test_patterns_of_strangers_are_not_run(tmp_path: Path) -> None:
    config, store, _ = CASES["w8a8"]
    groups = config["config_groups"]
    assert isinstance(groups, dict)
    patterns = {name: {**groups["group_0"], "targets": [f"re:({name}+)+$"]} for name in ("a", "b")}
    write_checkpoint(tmp_path, {**config, "config_groups": patterns}, store)
    with pytest.raises(ModelUnsupported, match="does not say plainly which group"):
        open_files(tmp_path, Runtime(torch.float32))


def test_integers_that_no_format_speaks_of_are_refused(tmp_path: Path) -> None:
    _, store, _ = CASES["w8a8"]
    write_checkpoint(tmp_path, {}, store)
    with pytest.raises(ModelUnsupported, match="is stored as I8; supported are F32, BF16, F16"):
        open_files(tmp_path, Runtime(torch.float32))
