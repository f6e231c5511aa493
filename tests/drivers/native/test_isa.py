from __future__ import annotations

import pytest

from drivers.native.isa import NEEDS, WrongLevel, chosen_level, levels, levels_of


def cpuinfo(*flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: some\nflags\t\t: fpu {' '.join(flags)}\nbugs\t\t:\n"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", NEEDS["avx512"], ("avx512", "avx2", "generic")),
        ("x86_64", NEEDS["avx512"] - {"avx512_bf16"}, ("avx2", "generic")),
        ("x86_64", NEEDS["avx512"] | NEEDS["avx2vnni"], ("avx512", "avx2vnni", "avx2", "generic")),
        ("x86_64", NEEDS["avx2vnni"], ("avx2vnni", "avx2", "generic")),
        ("x86_64", NEEDS["avx2"] - {"f16c"}, ("generic",)),
        ("aarch64", NEEDS["avx512"], ("generic",)),
    ],
)
def test_a_level_needs_all_of_its_instructions(machine: str, flags: set[str], expected: tuple[str, ...]) -> None:
    assert levels_of(machine, cpuinfo(*sorted(flags))) == expected


def test_of_a_processor_that_says_nothing_nothing_is_assumed() -> None:
    assert levels_of("x86_64", "") == ("generic",)


def test_a_lower_level_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELD_ISA", raising=False)
    assert chosen_level() == levels()[0]
    monkeypatch.setenv("KERNELD_ISA", "generic")
    assert chosen_level() == "generic"
    assert chosen_level(levels()[0]) == levels()[0]


def test_a_level_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(WrongLevel, match=r"avx9.*generic"):
        chosen_level("avx9")
