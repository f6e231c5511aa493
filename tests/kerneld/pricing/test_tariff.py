"""What tokens cost: never less for more, and the same however they are counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kerneld.pricing.tariff import UNCALIBRATED, Tariff

PRICES = st.integers(0, 50_000_000)
TARIFFS = st.builds(Tariff, PRICES, st.just(0), PRICES, st.integers(0, 10_000)).flatmap(
    lambda tariff: st.integers(0, tariff.input_ns).map(lambda cached: Tariff(tariff.input_ns, cached, tariff.output_ns, tariff.context_ns))
)


@given(tariff=TARIFFS, num_cached=st.integers(0, 5000), computed=st.integers(0, 5000), more=st.integers(0, 500))
def test_more_input_never_costs_less(tariff: Tariff, num_cached: int, computed: int, more: int) -> None:
    cost = tariff.input_us(num_cached, num_cached + computed)

    assert 0 <= cost <= tariff.input_us(num_cached, num_cached + computed + more)


@given(tariff=TARIFFS, num_tokens=st.integers(0, 5000), num_cached=st.integers(0, 5000), more=st.integers(0, 500))
def test_more_of_it_cached_never_costs_more(tariff: Tariff, num_tokens: int, num_cached: int, more: int) -> None:
    few = min(num_cached, num_tokens)
    many = min(few + more, num_tokens)

    assert tariff.input_us(many, num_tokens) <= tariff.input_us(few, num_tokens) + 1  # what two roundings may add


@given(tariff=TARIFFS, position=st.integers(0, 5000), parts=st.lists(st.integers(0, 300), max_size=20))
def test_output_costs_the_same_however_it_comes(tariff: Tariff, position: int, parts: list[int]) -> None:
    costs = [tariff.output_us(position + sum(parts[:idx]), part) for idx, part in enumerate(parts)]

    assert all(cost >= 0 for cost in costs)
    assert sum(costs) == tariff.output_us(position, sum(parts))


@given(tariff=TARIFFS, position=st.integers(0, 5000), num_tokens=st.integers(1, 500), later=st.integers(0, 5000))
def test_output_later_in_a_context_never_costs_less(tariff: Tariff, position: int, num_tokens: int, later: int) -> None:
    assert tariff.output_us(position, num_tokens) <= tariff.output_us(position + later, num_tokens) + 1


def test_until_a_model_was_measured_output_costs_twice_the_input_and_cached_input_a_tenth() -> None:
    assert (UNCALIBRATED.input_us(0, 100), UNCALIBRATED.input_us(100, 100), UNCALIBRATED.output_us(100, 100)) == (1000, 100, 2000)


def test_every_token_pays_for_those_that_stand_before_it_and_not_for_itself() -> None:
    tariff = Tariff(input_ns=0, cached_ns=0, output_ns=0, context_ns=1000)

    assert [tariff.input_us(0, num_tokens) for num_tokens in range(5)] == [0, 0, 1, 3, 6]
    assert tariff.output_us(100, 2) == 100 + 101
