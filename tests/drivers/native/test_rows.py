"""Row kernels against torch in float64, on every level of instructions that this processor has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.native.isa import levels
from drivers.native.rows import NativeRows, native_rows
from drivers.ops.calls import Activation

WIDTHS = (1, 15, 16, 17, 96, 576, 1003)
EXACT: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.fixture(params=levels())
def rows(request: pytest.FixtureRequest) -> NativeRows:
    found = native_rows(request.param)
    assert found is not None
    return found


def numbers(*shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


def ulps(found: Tensor, expected: Tensor) -> float:
    """The greatest distance, in units of the last place of the expected numbers."""
    one = torch.frexp(expected.float()).exponent.double()
    return float(((found.double() - expected) / torch.exp2(one - 24)).abs().max())


def is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Within `tolerance` of the greatest number expected."""
    return bool((found.double() - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize(("name", "low", "high", "bound"), [("exp", -87.3, 88.7, 1.1), ("tanh", -12.0, 12.0, 1.4), ("erf", -6.0, 6.0, 1.2)])
def test_functions_are_within_a_few_units_of_the_last_place(rows: NativeRows, name: str, low: float, high: float, bound: float) -> None:
    random = torch.Generator().manual_seed(5)
    near = torch.randn(200_000, generator=random) * 10.0 ** -torch.randint(0, 9, (200_000,), generator=random)
    x = torch.cat([torch.linspace(low, high, 400_000), near.clamp(low, high)])
    exact = {"exp": torch.exp, "tanh": torch.tanh, "erf": torch.erf}[name](x.double())
    assert ulps(rows.function(name, x), exact) <= bound


def test_functions_of_what_is_not_finite(rows: NativeRows) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 200.0, -200.0, 0.0, -0.0])
    torch.testing.assert_close(
        rows.function("exp", x), torch.tensor([float("nan"), float("inf"), 0, float("inf"), 0, 1, 1]), equal_nan=True
    )
    for name in ("tanh", "erf"):
        torch.testing.assert_close(
            rows.function(name, x), torch.tensor([float("nan"), 1, -1, 1, -1, 0, -0.0]), equal_nan=True, rtol=0, atol=0
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(rows: NativeRows, width: int) -> None:
    x, weight, bias, residual = numbers(3, width) + 1.0, numbers(width), numbers(width), numbers(3, width)
    wide, exact_weight = x.double(), weight.double()
    rms = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * exact_weight
    assert is_close(rows.rms_norm(x, weight, 1e-5), rms, 3e-7)
    assert is_close(rows.norm_add(x, weight, 1e-5, residual.clone()), residual.double() + rms, 3e-7)
    for wanted in (None, bias):
        exact = F.layer_norm(wide, (width,), exact_weight, None if wanted is None else wanted.double(), 1e-5)
        assert is_close(rows.layer_norm(x, weight, wanted, 1e-5), exact, 1e-6)
    assert torch.equal(rows.add(x, residual.clone()), residual + x)


def test_a_layer_norm_of_large_and_nearly_equal_values_keeps_its_digits(rows: NativeRows) -> None:
    x = 1000.0 + numbers(2, 768, scale=0.1)
    ones = torch.ones(768)
    assert is_close(rows.layer_norm(x, ones, None, 1e-5), F.layer_norm(x.double(), (768,), eps=1e-5), 1e-3)


@pytest.mark.parametrize("function", list(Activation))
@pytest.mark.parametrize("width", WIDTHS)
def test_activations(rows: NativeRows, function: Activation, width: int) -> None:
    gate, up = numbers(3, width), numbers(4, width)[:3].contiguous()
    exact = EXACT[function](gate.double())
    assert is_close(rows.act(function, gate), exact, 3e-7)
    assert is_close(rows.act_mul(function, gate, up), exact * up.double(), 4e-7)


def test_an_activation_far_below_zero_is_nearly_nothing(rows: NativeRows) -> None:
    x = torch.tensor([[-1e30, -1000.0, -88.0, -20.0]])
    for function in Activation:
        assert rows.act(function, x).abs().max() <= 1e-6


def test_a_softcap_keeps_within_its_cap(rows: NativeRows) -> None:
    x = numbers(2, 333, scale=60.0)
    exact = 30.0 * torch.tanh(x.double() / 30.0)
    assert is_close(rows.softcap(x.clone(), 30.0), exact, 3e-7)


@pytest.mark.parametrize("function", list(Activation))
def test_the_last_of_a_row_go_through_the_same_instructions_as_the_others(rows: NativeRows, function: Activation) -> None:
    x = numbers(1, 64)
    whole = rows.act(function, x)
    for width in range(1, 48):
        assert torch.equal(rows.act(function, x[:, :width].contiguous()), whole[:, :width])
        assert torch.equal(rows.softcap(x[:, :width].clone(), 5.0), rows.softcap(x.clone(), 5.0)[:, :width])


def test_a_row_does_not_see_its_neighbours(rows: NativeRows) -> None:
    x, weight = numbers(5, 77), numbers(77)
    together = rows.rms_norm(x, weight, 1e-6)
    for row in range(5):
        assert torch.equal(rows.rms_norm(x[row : row + 1], weight, 1e-6), together[row : row + 1])


@pytest.mark.parametrize("width", WIDTHS)
def test_argmax_is_the_first_of_the_greatest(rows: NativeRows, width: int) -> None:
    logits = torch.randint(-4, 4, (20, width), generator=torch.Generator().manual_seed(width)).float()
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert rows.argmax(logits).tolist() == expected


@pytest.mark.parametrize(("value", "is_found"), [(float("nan"), False), (float("inf"), False), (-float("inf"), True), (3e38, True)])
@pytest.mark.parametrize("place", [0, 7, 31, 98])
def test_argmax_finds_what_is_not_finite(rows: NativeRows, value: float, is_found: bool, place: int) -> None:
    logits = numbers(1, 99)
    logits[0, place] = value
    assert (rows.argmax(logits).item() >= 0) is is_found


def test_argmax_of_nothing_but_minus_infinity_finds_none(rows: NativeRows) -> None:
    assert rows.argmax(torch.full((1, 33), -float("inf"))).item() == -1


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 2), (60, 4), (128, 8), (3, 3)])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_top_experts_are_those_of_the_softmax(rows: NativeRows, num_experts: int, top_k: int, is_normalized: bool) -> None:
    logits = numbers(9, num_experts)
    shares, experts = logits.double().softmax(-1).topk(top_k, dim=-1)
    if is_normalized:
        shares /= shares.sum(-1, keepdim=True)
    found, found_shares = rows.top_experts(logits, top_k, is_normalized)
    assert torch.equal(found.long(), experts)
    assert is_close(found_shares, shares, 1e-6)


def test_of_equal_experts_the_smaller_comes_first(rows: NativeRows) -> None:
    experts, shares = rows.top_experts(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]]), 4, True)
    assert experts.tolist() == [[1, 2, 4, 0]]
    assert shares[0, 0] == shares[0, 2]


def test_experts_of_logits_that_are_not_finite_get_no_number_as_share(rows: NativeRows) -> None:
    for value in (float("nan"), float("inf")):
        experts, shares = rows.top_experts(torch.tensor([[0.5, value, 1.0, 2.0]]), 2, True)
        assert shares.isnan().any()
        assert ((experts >= 0) & (experts < 4)).all()
