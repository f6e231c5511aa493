"""What is expected of a tenant's next output, and that nobody can talk it down."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kerneld.pricing.forecast import OUTPUTS_REMEMBERED, Forecast

LENGTHS = st.lists(st.integers(1, 2000), min_size=1, max_size=20)


def forecast_of(*lengths: int) -> Forecast:
    forecast = Forecast()
    for length in lengths:
        forecast.ended("ann", length, is_cut_off=False)
    return forecast


def test_nothing_is_expected_of_a_stranger() -> None:
    assert Forecast().of("ann") == 0


@given(lengths=LENGTHS)
def test_the_mean_of_the_last_outputs_is_expected(lengths: list[int]) -> None:
    last = lengths[-OUTPUTS_REMEMBERED:]

    assert forecast_of(*lengths).of("ann") == sum(last) // len(last)


@given(lengths=LENGTHS, probes=st.lists(st.integers(0, 3), max_size=50))
def test_outputs_that_were_cut_off_never_lower_what_is_expected(lengths: list[int], probes: list[int]) -> None:
    forecast = forecast_of(*lengths)
    before = forecast.of("ann")

    for probe in probes:
        forecast.ended("ann", probe, is_cut_off=True)

    assert forecast.of("ann") >= before
    assert before < 3 or forecast.snapshot() == forecast_of(*lengths).snapshot()


def test_an_output_that_was_cut_off_beyond_the_mean_counts() -> None:
    forecast = forecast_of(10)

    forecast.ended("ann", 30, is_cut_off=True)

    assert forecast.of("ann") == 20


def test_requests_without_output_say_nothing() -> None:
    forecast = forecast_of(40)

    forecast.ended("ann", 0, is_cut_off=False)

    assert forecast.of("ann") == 40


def test_tenants_do_not_answer_for_each_other() -> None:
    assert forecast_of(40).of("bob") == 0


def test_all_changes_one_over_the_other_are_the_forecast() -> None:
    forecast, again = forecast_of(3, 4), Forecast()
    forecast.ended("bob", 9, is_cut_off=False)
    again.restore(forecast.changes())
    forecast.ended("ann", 5, is_cut_off=False)
    forecast.forget("bob")
    lost = forecast.changes()
    forecast.unkept(lost)
    again.restore(forecast.changes())

    assert again.snapshot() == forecast.snapshot() == {"ann": (3, 4, 5)}
    assert forecast.changes() == {}
