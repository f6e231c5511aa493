"""Loads for native code: the same weights as for torch, in panels, quantized on the way where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from drivers.contract import InspectSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.checkpoint import read_checkpoint
from drivers.models.layout import why_no_panels
from drivers.models.loader import PageShape, arrange, frame_bytes, model_spec
from drivers.models.runtime import Runtime
from tests.drivers.models.checkpoint_rig import Array, load, open_files, write_checkpoint

LARGEST_ERROR = {"": 0.004, "int8": 0.004, "int4": 0.13}  # of the largest weight; 0.004: half a step of bfloat16, or of 127


def floats_of(random: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, Array], Array]:
    """A linear as most models store it."""
    values = random.standard_normal((rows, columns)).astype(np.float32)
    return {"weight": values}, values.astype(np.float64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small model in float32."""
    return write_checkpoint(tmp_path, {}, floats_of).path


def parts_of(path: Path, runtime: Runtime) -> dict[str, Tensor]:
    """All parts of a loaded model in float32."""
    _, segments = load(path, runtime)
    return {f"{idx}.{name}": part for idx, parts in enumerate(segments) for name, part in parts.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_panels_hold_the_weights_that_torch_has(path: Path, dtype: torch.dtype) -> None:
    rows, panels = parts_of(path, Runtime(dtype)), parts_of(path, Runtime(dtype, is_native=True))
    vectors = {name for name in rows if name.endswith("norm")}
    for name in rows.keys() - vectors:
        assert torch.equal(rows[name], panels[name]), name
    plain = parts_of(path, Runtime(torch.float32))
    for name in vectors:
        assert torch.equal(panels[name], plain[name]), f"{name} stays in float32 whatever the matrices are"


@pytest.mark.parametrize("is_native", [False, True], ids=["rows", "panels"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantizing_while_loading_changes_weights_little(path: Path, quant: str, is_native: bool) -> None:
    plain = parts_of(path, Runtime(torch.float32))
    for name, part in parts_of(path, Runtime(torch.bfloat16, is_native, quant)).items():
        error = float((part - plain[name]).abs().max() / plain[name].abs().max())
        wide = "embedding" in name or "head" in name or "norm" in name
        assert error <= LARGEST_ERROR["int8" if wide else quant], name


def test_each_part_gets_the_form_that_its_quantization_says(path: Path) -> None:
    runtime = Runtime(torch.bfloat16, is_native=True, quant="int4")
    forms = {part.name: part.storage for segment in open_files(path, runtime).segments for part in segment.parts}
    assert {name: form.name for name, form in forms.items()} == {
        "embedding": "int8",
        "input_norm": "float32",
        "qkv.weight": "int4 in groups of 32",
        "output.weight": "int4 in groups of 32",
        "inner_norm": "float32",
        "gate_up.weight": "int4 in groups of 32",
        "down.weight": "int4 in groups of 32",
        "norm": "float32",
        "head": "int8",
    }


def test_quantized_models_take_less(path: Path) -> None:
    sizes = [sum(s.size_bytes for s in open_files(path, Runtime(torch.bfloat16, True, quant)).segments) for quant in ("", "int8", "int4")]
    assert sizes[1] < 0.54 * sizes[0]
    assert sizes[2] < 0.70 * sizes[1]


@pytest.mark.parametrize("is_native", [False, True], ids=["rows", "panels"])
def test_a_weight_that_is_not_finite_is_not_quantized(tmp_path: Path, is_native: bool) -> None:
    bad = np.zeros((128, 192), np.float32)
    bad[100, 3] = np.inf
    write_checkpoint(tmp_path, {}, floats_of, {"model.layers.0.mlp.down_proj.weight": bad})
    with pytest.raises(ModelCorrupt, match=r"down_proj\.weight has values that are not finite"):
        load(tmp_path, Runtime(torch.float32, is_native, "int8"))


def test_how_a_model_is_run_is_part_of_its_numerics(path: Path) -> None:
    pages = PageShape(16, 1024, torch.bfloat16)
    runtimes = [
        Runtime(torch.bfloat16),
        Runtime(torch.bfloat16, is_native=True),
        Runtime(torch.bfloat16, is_native=True, quant="int8"),
        Runtime(torch.bfloat16, is_native=True, kv_quant="int8"),
        Runtime(torch.bfloat16, is_native=True, kv_quant="fp8"),
    ]
    specs = [model_spec(open_files(path, runtime), pages) for runtime in runtimes]
    assert len({spec.numerics for spec in specs}) == len(runtimes)
    assert [(spec.quant, spec.kv_quant) for spec in specs] == [("", ""), ("", ""), ("int8", ""), ("", "int8"), ("", "fp8")]


@pytest.mark.parametrize("kv_quant", ["int8", "fp8"])
def test_pages_of_eight_bits_take_half_and_their_scales(kv_quant: str, path: Path) -> None:
    config = read_checkpoint(InspectSpec(str(path))).config
    pages = PageShape(16, 64, torch.bfloat16)
    assert frame_bytes(config, 1, pages) == 16 * 2 * 2 * 32 * 2
    assert frame_bytes(config, 1, pages, kv_quant) == 16 * 2 * 2 * (32 + 4)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (Runtime(torch.float32, quant="int2"), "quant is 'int2'; supported are int8, int4"),
        (Runtime(torch.float32, is_native=True, kv_quant="int2"), "kv_quant is 'int2'; supported are int8, fp8"),
        (Runtime(torch.float32, kv_quant="fp8"), "kv_quant is 'fp8'.*native"),
    ],
)
def test_what_there_is_not_is_refused(path: Path, runtime: Runtime, message: str) -> None:
    with pytest.raises(ModelUnsupported, match=message):
        arrange(read_checkpoint(InspectSpec(str(path))), runtime)


def test_why_a_model_has_no_panels_is_said(path: Path) -> None:
    config = read_checkpoint(InspectSpec(str(path))).config
    assert why_no_panels(config) == ""
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"intermediate_size": 192', '"intermediate_size": 200'))
    assert "gate_up.weight" in why_no_panels(read_checkpoint(InspectSpec(str(path))).config)
