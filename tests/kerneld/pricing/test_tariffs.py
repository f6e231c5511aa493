"""Tariffs are kept and come back."""

from __future__ import annotations

from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.pricing.tariffs import Tariffs

FAST, SLOW = Tariff(100, 10, 200, 1), Tariff(1000, 100, 2000, 10)


def test_an_unknown_model_has_the_uncalibrated_tariff() -> None:
    assert Tariffs().get("m") == UNCALIBRATED


def test_changes_are_told_once_and_again_if_they_could_not_be_written() -> None:
    tariffs = Tariffs()
    tariffs.put("m", FAST)
    tariffs.put("n", SLOW)

    told = [tariffs.changes(), tariffs.changes()]
    tariffs.unkept(told[0])
    tariffs.put("m", SLOW)

    assert told == [{"m": FAST, "n": SLOW}, {}]
    assert tariffs.changes() == {"m": SLOW, "n": SLOW}


def test_a_tariff_that_stays_is_no_change() -> None:
    tariffs = Tariffs()
    tariffs.put("m", UNCALIBRATED)
    tariffs.put("n", FAST)
    tariffs.changes()

    tariffs.put("n", FAST)

    assert tariffs.changes() == {}


def test_all_changes_one_over_the_other_are_the_tariffs_with_forgotten_ones_gone() -> None:
    tariffs, again = Tariffs(), Tariffs()
    tariffs.put("m", FAST)
    tariffs.put("n", FAST)
    again.restore(tariffs.changes())
    tariffs.put("n", SLOW)
    tariffs.forget("m")
    again.restore(tariffs.changes())

    assert again.snapshot() == tariffs.snapshot() == {"n": SLOW}
    assert again.get("m") == UNCALIBRATED


def test_a_forgotten_model_leaves_nothing_behind() -> None:
    tariffs = Tariffs()
    for name in ("m", "n"):
        tariffs.put(name, FAST)
        tariffs.forget(name)
    tariffs.restore({"m": UNCALIBRATED})

    assert tariffs.snapshot() == {}
    assert tariffs.changes() == {"m": UNCALIBRATED, "n": UNCALIBRATED}
