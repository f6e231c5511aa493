"""What runs a model on the CPU, and that it does not show in what comes out beside whom."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from drivers.contract import InspectSpec, LoadedModel, LoadSpec, RowStart, Sampling
from drivers.cpu import CpuDriver
from drivers.cpu_ops import OpChooser
from drivers.errors import ModelUnsupported
from drivers.ops import running
from drivers.ops.calls import Call
from drivers.ops.running import Parts, Pass
from tests.drivers.cpu_rig import GRANULE_BYTES, GREEDY, TORCH, CpuRig, greedy_reference, prompt_of, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama model."""
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, "Llama")
    return directory


def again(rig: CpuRig) -> LoadedModel:
    """Unload the model, and load it once more."""
    rig.driver.unload(1)
    return load(rig.driver, rig.directory)


def load(driver: CpuDriver, directory: Path) -> LoadedModel:
    """Load a model at the start of the arena."""
    source = InspectSpec(str(directory))
    offsets, end = [], 0
    for segment in driver.inspect(source).segments:
        offsets.append(end)
        end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
    return driver.load(LoadSpec(1, source, (10,), tuple(offsets)), lambda _done, _total: None)


def test_a_model_says_what_runs_each_of_its_ops(model: Path) -> None:
    rig = CpuRig(model)
    told = again(rig)
    assert told.runs_on.startswith("native code (")
    assert {report.op: (report.covers, report.num_calls) for report in told.ops} == {
        "embed": (("embed",), 1),
        "norm_linear": (("rms_norm", "linear"), 3),
        "rope_kv_write": (("rope", "kv_write"), 3),
        "paged_attention": (("paged_attention",), 3),
        "linear_add": (("linear", "add"), 6),
        "norm_linear_act_mul": (("rms_norm", "linear", "act_mul"), 3),
        "head_sample": (("rms_norm", "linear", "sample"), 1),
    }
    assert all(report.implementation == f"native.{report.op}" and report.why for report in told.ops)
    rig.driver.close()


def test_an_op_that_disagrees_is_said_once_and_others_run_in_its_place(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = CpuRig(model).generate(prompt_of(20), 12)
    with caplog.at_level(logging.ERROR):
        rig = CpuRig(model, options={"disagree": "native.norm_linear"})
        told = again(rig)
    assert [record.message for record in caplog.records] == ["An op disagrees with its definition and is not used."]
    assert told.runs_on.startswith("native code (")
    runs = {report.op for report in told.ops if not report.is_quarantined}
    assert {"rms_norm", "linear"} <= runs
    assert "norm_linear" not in runs
    assert [report.implementation for report in told.ops if report.is_quarantined] == ["native.norm_linear"]
    assert "quarantined" in next(report.why for report in told.ops if report.op == "rms_norm")
    assert rig.generate(prompt_of(20), 12) == expected
    rig.driver.close()


def test_the_decision_that_finds_a_disagreement_is_made_without_it(model: Path) -> None:
    rig = CpuRig(model)
    known = rig.driver._opened().ground.ops
    for provider, engine in (("native", known.engine), ("torch", None)):
        op = {"native": "norm_linear", "torch": "add_rms_norm"}[provider]
        fresh = OpChooser(known.pages, engine, disagreeing=frozenset({f"{provider}.{op}"}))
        assert op not in {choice.call.op for choices in fresh.decide(InspectSpec(str(model))).cover.lists for choice in choices}
    rig.driver.close()


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_what_computes_something_else_than_its_definition_is_quarantined(
    factor: float, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = running.DEFINITIONS["act_mul"]

    def other(call: Call, parts: Parts, step: Pass) -> None:
        right(call, parts, step)
        step.values[call.outputs[0]] = step.values[call.outputs[0]] * factor

    monkeypatch.setitem(running.DEFINITIONS, "act_mul", other)
    rig = CpuRig(model)
    assert set(rig.driver._opened().ground.ops.bad) == {
        "native.norm_linear_act_mul",
        "native.linear_act_mul",
        "native.act_mul",
        "torch.act_mul",
    }
    rig.driver.close()


def test_a_model_of_which_one_op_has_no_native_code_left_is_run_by_torch(model: Path) -> None:
    expected = CpuRig(model).generate(prompt_of(20), 12)
    rig = CpuRig(model, options={"disagree": "native.paged_attention, torch.act_mul"})
    told = again(rig)
    assert "torch" in told.runs_on
    assert "paged_attention: quarantined" in told.runs_on
    assert {report.op: report.implementation for report in told.ops if not report.is_quarantined} == {
        "embed": "reference.embed",
        "rms_norm": "torch.rms_norm",
        "linear": "reference.linear",
        "rope_attention": "torch.rope_attention",
        "add_rms_norm": "torch.add_rms_norm",
        "act_mul": "reference.act_mul",
        "add": "reference.add",
    }
    assert rig.generate(prompt_of(20), 12) == expected
    rig.driver.close()


def test_what_agreed_once_is_not_compared_again(model: Path) -> None:
    rig = CpuRig(model)
    ops = rig.driver._opened().ground.ops
    compared = ops.num_compared
    again(rig)
    assert compared == ops.num_compared > 5
    rig.driver.close()


def test_a_head_size_that_native_code_does_not_have_runs_in_torch_and_says_so(tmp_path: Path) -> None:
    reference = save_model(tmp_path, "Llama", head_dim=8)
    rig = CpuRig(tmp_path)
    assert "head_dim is 8" in again(rig).runs_on
    rig = CpuRig(tmp_path)
    assert rig.generate(prompt_of(30), 24, chunk=11) == greedy_reference(reference, prompt_of(30), 24)
    with pytest.raises(ModelUnsupported, match="needs native code, and there is none for this model: head_dim is 8"):
        rig.driver.inspect(InspectSpec(str(tmp_path), kv_quant="int8"))
    rig.driver.close()


def test_without_a_compiler_torch_computes_and_what_to_install_is_said(model: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from drivers.contract import *; from drivers.cpu import CpuDriver\n"
        "driver, source = CpuDriver(), InspectSpec(sys.argv[1])\n"
        "driver.open(OpenSpec(1, 1 << 23, 1024, 16, 1, 64, threads=1), None)\n"
        "sizes = [-(-each.size_bytes // 64) * 64 for each in driver.inspect(source).segments]\n"
        "places = tuple(sum(sizes[:idx]) for idx in range(len(sizes)))\n"
        "print(driver.load(LoadSpec(1, source, (10,), places), lambda done, total: None).runs_on)"
    )
    environment = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", script, str(model)], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("torch, ")
    assert "there is no C++ compiler (no-such-compiler)" in ran.stdout
    assert "apt install g++" in ran.stdout


def test_threads_run_where_they_are_told(model: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    seen: list[object] = []

    def run() -> None:  # in a thread of its own, as it is the caller that is bound
        rig = CpuRig(model, options={"cpus": str(cpu)})
        seen.extend([os.sched_getaffinity(0), rig.generate(prompt_of(20), 4)])
        rig.driver.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [{cpu}, CpuRig(model).generate(prompt_of(20), 4)]


MODES: list[tuple[str, dict[str, str], Mapping[str, str], bool]] = [
    ("bfloat16", {}, {}, False),
    ("bfloat16", {"quant": "int8"}, {}, False),
    ("bfloat16", {"quant": "int4"}, {}, False),
    ("bfloat16", {"kv_quant": "int8"}, {}, False),
    ("bfloat16", {"kv_quant": "fp8"}, {}, False),
    ("float32", {"kv_quant": "fp8"}, {"isa": "generic"}, False),
    ("float32", {}, {}, False),
    ("bfloat16", {}, {"isa": "generic"}, False),
    ("bfloat16", {}, TORCH, True),
    ("float16", {}, {}, True),
]


def scored(rig: CpuRig, prompts: Sequence[Sequence[int]], chunk: int) -> list[list[float]]:
    """Log-probabilities of every token but the first of prompts that run side by side, in chunks of different lengths."""
    starts = [
        RowStart(slot, 1, 0, tuple(prompt), rig.tables(len(prompt)), Sampling(num_logprobs=0), score_from=0)
        for slot, prompt in enumerate(prompts)
    ]
    found: list[list[float]] = [[] for _ in prompts]
    left = [len(prompt) for prompt in prompts]
    while any(left):
        runs = [(slot, min(chunk + 3 * slot, num)) for slot, num in enumerate(left) if num]
        [results] = rig.run(runs, starts=starts)
        starts = []
        for slot, count in runs:
            left[slot] -= count
            found[slot] += [item.logprob for item in results[slot].logprobs]
    rig.run([], 0, clears=range(len(prompts)))
    return found


@pytest.mark.parametrize(("dtype", "kept", "options", "is_asked"), MODES)
def test_a_continuation_has_the_same_bits_whatever_it_is_beside(
    dtype: str, kept: dict[str, str], options: Mapping[str, str], is_asked: bool, model: Path
) -> None:
    rig = CpuRig(model, dtype=dtype, options=options, is_batch_invariant=is_asked, **kept)
    prompts = [prompt_of(length, length) for length in (70, 20, 33, 1, 5)]
    alone = [scored(rig, [prompt], chunk=len(prompt))[0] for prompt in prompts]
    assert scored(rig, prompts, chunk=7) == alone
    one = rig.generate(prompts[1], 20)
    starts = [rig.start(slot, prompt, GREEDY, 24) for slot, prompt in enumerate(prompts)]
    steps = rig.run([(slot, len(prompt)) for slot, prompt in enumerate(prompts)], 8, starts)
    first = [results[1].tokens[0] for results in steps]
    rig.run([], 0, clears=range(len(prompts)))
    assert first + rig.generate([*prompts[1], *first], 12, chunk=9) == one, "interrupted, and computed again from its tokens"
    rig.driver.close()
