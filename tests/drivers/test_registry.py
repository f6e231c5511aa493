from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drivers.errors import DriverNotFound, DriverUnavailable
from drivers.fake import FakeDriver
from drivers.registry import available, create

ROOT = Path(__file__).resolve().parents[2]


def distribution(folder: Path, entries: str) -> Path:
    """A distribution on disk that offers drivers under our entry-point group."""
    info = folder / "other_drivers-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-drivers\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[kerneld.drivers]\n{entries}\n")
    (folder / "other_drivers.py").write_text("class Driver:\n    pass\n")
    return folder


def test_a_built_in_driver_is_created_by_name() -> None:
    assert isinstance(create("fake"), FakeDriver)


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(DriverNotFound, match="'abacus' is none of: cpu, cuda, fake"):
        create("abacus")


def test_built_in_drivers_are_listed() -> None:
    assert {("cpu", "built-in"), ("fake", "built-in")} <= set(available())


def test_a_driver_of_another_distribution_is_found_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "other = other_drivers:Driver")))

    assert ("other", "other-drivers 2.0") in available()
    assert type(create("other")).__module__ == "other_drivers"


def test_an_entry_point_cannot_take_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "fake = other_drivers:Driver")))

    assert ("fake", "built-in") in available()
    assert isinstance(create("fake"), FakeDriver)


def test_a_driver_whose_library_is_missing_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "broken = no_such_library:Driver")))

    with pytest.raises(DriverUnavailable, match="no_such_library"):
        create("broken")


def test_naming_drivers_imports_none_of_them() -> None:
    script = "import sys; from drivers.registry import available; available(); print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert {"torch", "drivers.cpu", "drivers.fake"} & set(finished.stdout.split()) == set()
