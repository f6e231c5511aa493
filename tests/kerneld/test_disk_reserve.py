"""DiskReserve: new work leaves the last bytes of the disk alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.disk_reserve import DiskReserve
from kerneld.errors import DiskFull


def test_work_is_let_in_while_the_reserve_is_free(tmp_path: Path) -> None:
    DiskReserve(tmp_path, 1).check()


def test_work_is_refused_below_the_reserve_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="disk_reserve_bytes") as refusal:
        DiskReserve(tmp_path, 1 << 60).check()
    assert refusal.value.facts["needed_bytes"] == str(1 << 60)
    assert int(refusal.value.facts["free_bytes"]) < 1 << 60


def test_without_a_reserve_nothing_is_asked_of_the_disk(tmp_path: Path) -> None:
    DiskReserve(tmp_path / "not there", 0).check()
