"""The comparison of native ops with their definitions: it lets pass what agrees, in every form, and nothing that is a little off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drivers.contract import InspectSpec
from drivers.cpu_ops import OpChooser
from drivers.cpu_shapes import native_shape, whole
from drivers.models.loader import PageShape
from drivers.native.check import NativeCase, native_cases
from drivers.native.engine import Engine
from drivers.native.little import error_of
from drivers.ops import running
from drivers.ops.calls import Call
from drivers.ops.running import Parts, Pass, Run
from tests.drivers.family_rig import save_family

FORMS = [("float32", "", ""), ("bfloat16", "", ""), ("bfloat16", "int8", "int8"), ("float32", "int4", ""), ("float32", "", "fp8")]
FAMILIES = ("gemma2", "mixtral", "gpt2", "phi3-window-partial")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine of two threads."""
    opened = Engine(2)
    yield opened
    opened.close()


def cases_of(engine: Engine, directory: Path, form: tuple[str, str, str]) -> tuple[NativeCase, ...]:
    """All that is tried of a model."""
    dtype, quant, kv_quant = form
    ops = OpChooser(PageShape(16, 1024, getattr(torch, dtype)), engine)
    decision = ops.decide(InspectSpec(str(directory), quant=quant, kv_quant=kv_quant))
    assert decision.program is not None
    assert ops.bad == {}
    return native_cases(decision.cover, decision.files.segments, native_shape(decision.files, ops.pages, whole(decision.files, ops.pages)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_op_of_a_model_agrees_in_every_form(family: str, form: tuple[str, str, str], engine: Engine, tmp_path: Path) -> None:
    save_family(tmp_path, family)
    cases = cases_of(engine, tmp_path, form)
    tried = {each.op for case in cases for call in case.calls for each in call.stands_for or (call,)}
    assert {"embed", "linear", "kv_write", "paged_attention", "add"} <= tried
    assert len(set(cases)) == len(cases)


def off(right: Run) -> Run:
    """A definition whose answer is a tenth larger: as if native code were a tenth too small."""

    def run(call: Call, parts: Parts, step: Pass) -> None:
        right(call, parts, step)
        for name in call.outputs:
            step.values[name] = step.values[name] * 1.1

    return run


OPS = ("embed", "rms_norm", "linear", "rope", "paged_attention", "add", "act_mul", "experts")


@pytest.mark.parametrize(("op", "kv_quant"), [*((op, "") for op in OPS), ("paged_attention", "int8"), ("paged_attention", "fp8")])
def test_what_is_a_tenth_off_is_found(op: str, kv_quant: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_family(tmp_path, "mixtral")
    cases = cases_of(engine, tmp_path, ("bfloat16", "", kv_quant))
    if op == "act_mul":
        save_family(tmp_path / "dense", "gemma2")
        cases = cases_of(engine, tmp_path / "dense", ("bfloat16", "", ""))
    monkeypatch.setitem(running.DEFINITIONS, op, off(running.DEFINITIONS[op]))
    concerned = [case for case in cases if any(op in (each.op, *(one.op for one in each.stands_for)) for each in case.calls)]
    assert concerned
    for case in concerned:
        assert not error_of(case, engine) <= case.tolerance
