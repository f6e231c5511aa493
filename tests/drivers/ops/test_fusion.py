"""The fusion pass: what may stand for what, at the least cost, and that a fused list computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drivers.ops.calls import (
    Activation,
    ActivationSettings,
    AttentionSettings,
    Call,
    Description,
    HeadNormSettings,
    NormSettings,
    RopeSettings,
)
from drivers.ops.fusion import NOT_COVERED, Choice, borders, fuse, fuse_calls
from drivers.ops.implementation import REFERENCE, TORCH, Implementation, Shapes
from drivers.ops.ragged import HeadShape
from drivers.ops.running import Parts, Pass, run_definition

WIDTH = 8
SHAPES = Shapes(HeadShape(2, 1, 4), 16, WIDTH, "float32", {})
NORM, SILU = NormSettings(1e-5), ActivationSettings(Activation.SILU)
NORM_LINEAR = Implementation("norm_linear", ("rms_norm", "linear"), "test", 1.0)
LINEAR_ADD = Implementation("linear_add", ("linear", "add"), "test", 1.0)
ADD_NORM = Implementation("add_norm", ("add", "rms_norm"), "test", 1.0, visible=(0, 1))
ROPE_KV_WRITE = Implementation("rope_kv_write", ("rope", "kv_write"), "test", 1.0, visible=(0,))
HEAD_ROPE_KV_WRITE = Implementation("rope_kv_write", ("head_norm", "rope", "kv_write"), "test", 1.0, visible=(1,))


def norm(x: str, y: str) -> Call:
    """An RMS norm."""
    return Call("rms_norm", (x,), (y,), ("norm",), (NORM,))


def linear(x: str, y: str) -> Call:
    """A square linear."""
    return Call("linear", (x,), (y,), ("square",))


def add(x: str, residual: str = "residual") -> Call:
    """An addition in place."""
    return Call("add", (x, residual), (residual,))


def ops(choices: tuple[Choice, ...]) -> list[str]:
    """The ops of a fused list."""
    return [choice.call.op for choice in choices]


def fused(calls: list[Call], *offered: Implementation, kept: str = "residual") -> tuple[Choice, ...]:
    """What a list becomes with these implementations and the definitions."""
    return fuse_calls(calls, {kept}, (*offered, *REFERENCE), SHAPES)


def test_a_run_becomes_one_call_with_all_parts_and_settings() -> None:
    [choice] = fused([norm("residual", "x"), linear("x", "y")], NORM_LINEAR, kept="y")
    assert choice.call == Call("norm_linear", ("residual",), ("y",), ("norm", "square"), (NORM,), (norm("residual", "x"), linear("x", "y")))
    assert choice.implementation is NORM_LINEAR


def test_what_comes_from_outside_of_a_run_is_read_by_its_call() -> None:
    [choice] = fused([linear("x", "y"), add("y")], LINEAR_ADD)
    assert (choice.call.inputs, choice.call.outputs) == (("x", "residual"), ("residual",))


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([norm("residual", "x"), linear("x", "y"), add("x"), add("y")], id="read by another call"),
        pytest.param([norm("residual", "residual"), linear("residual", "y")], id="read by who comes after the list"),
        pytest.param([norm("residual", "x"), linear("z", "y"), add("y")], id="not what the call before gave"),
        pytest.param([norm("residual", "x"), Call("act", ("x",), ("x",), (), (SILU,)), linear("x", "y"), add("y")], id="not neighbours"),
    ],
)
def test_nothing_is_fused_across_a_value_that_others_read(calls: list[Call]) -> None:
    assert ops(fused(calls, NORM_LINEAR)) == [call.op for call in calls]


def test_a_value_written_anew_afterwards_is_not_read_by_others() -> None:
    calls = [norm("residual", "x"), linear("x", "y"), norm("y", "x"), add("x")]
    assert ops(fused(calls, NORM_LINEAR)) == ["norm_linear", "rms_norm", "add"]


def test_an_addition_to_itself_does_not_begin_with_what_the_run_wrote() -> None:
    assert ops(fused([linear("x", "y"), add("y", "y"), add("y")], LINEAR_ADD)) == ["linear", "add", "add"]


def test_a_visible_value_may_be_read_by_others() -> None:
    [choice] = fused([add("y"), norm("residual", "x")], ADD_NORM, kept="x")
    assert choice.call.outputs == ("residual", "x")
    assert ops(fused([add("y"), norm("residual", "x"), linear("x", "y"), add("y")], ADD_NORM)) == ["add_norm", "linear", "add"]


def test_rotation_and_write_hand_on_the_turned_queries() -> None:
    attention = AttentionSettings(0, 0, 0.5)
    rope = Call("rope", ("qkv", "positions"), ("qkv",), (), (RopeSettings(0, 4),))
    write, attend = Call("kv_write", ("qkv",), (), (), (attention,)), Call("paged_attention", ("qkv",), ("mixed",), (), (attention,))
    head_norm = Call("head_norm", ("qkv",), ("qkv",), ("query_norm", "key_norm"), (HeadNormSettings(1e-5),))
    offered = (ROPE_KV_WRITE, HEAD_ROPE_KV_WRITE)
    first, second = fused([rope, write, attend], *offered, kept="mixed")
    assert (first.call.inputs, first.call.outputs, second.call.op) == (("qkv", "positions"), ("qkv",), "paged_attention")
    assert ops(fused([head_norm, rope, write, attend], *offered, kept="mixed")) == ["rope_kv_write", "paged_attention"]
    whole = fuse_calls([rope, write, attend], {"mixed"}, (*TORCH, *REFERENCE), SHAPES)
    assert ops(whole) == ["rope_attention"]


def test_the_cheapest_cover_wins_over_the_longest_first_run() -> None:
    calls = [add("y"), norm("residual", "x"), linear("x", "y")]
    assert ops(fused(calls, replace(ADD_NORM, cost=7.0), NORM_LINEAR, kept="y")) == ["add", "norm_linear"]
    assert ops(fused(calls, ADD_NORM, replace(NORM_LINEAR, cost=15.5), kept="y")) == ["add_norm", "linear"]


def test_what_overwrites_its_input_is_not_chosen_where_that_is_read_again() -> None:
    halved = Call("act_mul", ("gate_up",), ("inner",), (), (SILU,))
    again = Call("act_mul", ("gate_up",), ("y",), (), (SILU,))
    choices = fuse_calls([halved, again], {"inner", "y"}, (*TORCH, *REFERENCE), SHAPES)
    assert [choice.implementation.provider for choice in choices if choice.implementation] == ["reference", "torch"]


def test_why_a_better_one_does_not_apply_is_told() -> None:
    refusing = replace(NORM_LINEAR, supports=lambda _call, _shapes: "odd shapes")
    first, _ = fused([norm("residual", "x"), linear("x", "y")], refusing, kept="y")
    assert first.refused == (("test.norm_linear", "odd shapes"),)


def test_a_gap_is_named_with_its_reason() -> None:
    refusing = replace(NORM_LINEAR, supports=lambda _call, _shapes: "odd shapes")
    description = Description((linear("tokens", "residual"),), ((norm("residual", "x"), linear("x", "y"), add("y")),), ())
    only_linears = next(each for each in REFERENCE if each.op == "linear")
    cover = fuse(description, (refusing, only_linears), lambda _idx: SHAPES)
    assert cover.gaps == ("rms_norm: odd shapes", "add: there is none")
    assert cover.description.first == description.first


def poisoned(call: Call, parts: Parts, step: Pass) -> None:
    """Run a call by its definition, from what it reads to what it writes and nothing beside: inner values are lost."""
    inner = replace(step, values={name: step.values[name] for name in call.inputs})
    run_definition(call, parts, inner)
    for each in call.stands_for:
        step.values |= {name: torch.full_like(inner.values[name], float("nan")) for name in each.outputs}
    step.values |= {name: inner.values[name] for name in call.outputs}


NAMES = st.sampled_from(["a", "b", "residual"])
UNARY = st.builds(lambda make, x, y: make(x, y), st.sampled_from([norm, linear]), NAMES, NAMES)
ACT = st.builds(lambda x, y: Call("act", (x,), (y,), (), (SILU,)), NAMES, NAMES)
GATED = st.builds(lambda x, y: [Call("linear", (x,), ("wide",), ("wide",)), Call("act_mul", ("wide",), (y,), (), (SILU,))], NAMES, NAMES)
STRETCH = st.one_of(
    UNARY.map(lambda call: [call]), ACT.map(lambda call: [call]), st.builds(add, NAMES, NAMES).map(lambda call: [call]), GATED
)
PATTERNS = [
    (("rms_norm", "linear"), (-1,)),
    (("linear", "add"), (-1,)),
    (("rms_norm", "add"), (-1,)),
    (("add", "rms_norm"), (0, 1)),
    (("linear", "act"), (-1,)),
    (("linear", "act_mul"), (-1,)),
    (("rms_norm", "linear", "act_mul"), (-1,)),
    (("rms_norm", "linear"), (0, 1)),
]


def offered(costs: list[float]) -> tuple[Implementation, ...]:
    """Fused implementations that lose what they do not hand on."""
    pairs = zip(PATTERNS, costs, strict=True)
    return tuple(Implementation("_".join(covers), covers, "test", cost, poisoned, visible=seen) for (covers, seen), cost in pairs)


def run(choices: tuple[Choice, ...], parts: Parts) -> Tensor:
    """The residual that a list makes."""
    values = {
        name: torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed, name in enumerate(("a", "b", "residual"))
    }
    step = Pass(values, torch.float32, SHAPES.heads, (), (), ())
    for choice in choices:
        assert choice.implementation is not None
        choice.implementation.run(choice.call, parts, step)
    return step.values["residual"]


@settings(max_examples=200)
@given(stretches=st.lists(STRETCH, max_size=8), costs=st.lists(st.floats(0.5, 12.0), min_size=len(PATTERNS), max_size=len(PATTERNS)))
def test_a_fused_list_computes_the_same(stretches: list[list[Call]], costs: list[float]) -> None:
    random = torch.Generator().manual_seed(9)
    sizes = {"norm": (WIDTH,), "square": (WIDTH, WIDTH), "wide": (2 * WIDTH, WIDTH)}
    parts = {name: torch.randn(size, generator=random) for name, size in sizes.items()}
    calls = [call for stretch in stretches for call in stretch]
    plain = fuse_calls(calls, {"residual"}, REFERENCE, SHAPES)
    chosen = fuse_calls(calls, {"residual"}, (*offered(costs), *TORCH, *REFERENCE), SHAPES)
    assert [each for choice in chosen for each in choice.call.stands_for or (choice.call,)] == calls
    assert sum(choice.cost for choice in chosen) <= sum(choice.cost for choice in plain) < NOT_COVERED
    torch.testing.assert_close(run(chosen, parts), run(plain, parts), rtol=1e-4, atol=1e-4)


def between(first: list[Call], second: list[Call], *offered: Implementation) -> list[str]:
    """The op that joins two lists, if there is one."""
    cover = fuse(Description(tuple(first), (), tuple(second)), (*offered, *REFERENCE), lambda _idx: SHAPES)
    return [choice.call.op for choice in borders(cover, (*offered, *REFERENCE), lambda _idx: SHAPES) if choice is not None]


def test_the_last_call_of_a_list_and_the_first_of_the_next_are_joined_where_that_is_cheaper() -> None:
    first, second = [linear("residual", "y"), add("y")], [norm("residual", "x"), linear("x", "logits")]

    assert between(first, second, ADD_NORM) == ["add_norm"]
    assert between(first, second) == []
    assert between(first, second, replace(ADD_NORM, cost=100.0)) == []
    assert between(first, second, replace(ADD_NORM, supports=lambda _call, _shapes: "too wide")) == []


def test_a_border_is_not_joined_if_that_hid_what_is_read_or_took_parts_of_the_first_list() -> None:
    second = [norm("residual", "x"), linear("x", "logits")]

    assert between([linear("residual", "y"), add("y")], second, replace(ADD_NORM, visible=(1,))) == []
    assert (
        between([linear("residual", "residual")], second, Implementation("two", ("linear", "rms_norm"), "test", 1.0, visible=(0, 1))) == []
    )


def test_lists_are_covered_as_if_they_were_not_joined() -> None:
    cover = fuse(
        Description((linear("residual", "y"), add("y")), (), (norm("residual", "x"), linear("x", "logits"))),
        (ADD_NORM, *REFERENCE),
        lambda _idx: SHAPES,
    )

    assert [ops(choices) for choices in cover.lists] == [["linear", "add"], ["rms_norm", "linear"]]
