from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drivers import registry
from drivers.errors import DriverNotFound, DriverUnavailable, OptionUnknown
from drivers.fake import FakeDriver
from drivers.registry import available, create, entry_point_of, probe

ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import msgspec
from drivers.fake import FakeDriver

class Driver(FakeDriver):
    pass

class Half:
    def probe(self): ...
    def open(self, spec, host_fd): ...

class Elder(FakeDriver):
    def probe(self):
        return msgspec.structs.replace(super().probe(), driver="elder", contract_version=0)

class Talker(FakeDriver):
    def probe(self):
        return {"driver": "talker"}
"""


def distribution(folder: Path, entries: str) -> Path:
    """A distribution on disk that offers drivers under our entry-point group."""
    info = folder / "other_drivers-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-drivers\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[kerneld.drivers]\n{entries}\n")
    (folder / "other_drivers.py").write_text(OTHER)
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


def test_a_class_that_lacks_methods_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "half = other_drivers:Half")))

    with pytest.raises(DriverUnavailable, match="half lacks apply, close, copied, give_back, inspect, load, park, step, take, unload of"):
        create("half")


def test_a_driver_of_another_contract_is_refused_by_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "elder = other_drivers:Elder\ntalker = other_drivers:Talker")))

    with pytest.raises(DriverUnavailable, match="elder 1 was written for version 0 of the driver contract; this kerneld speaks version 1"):
        probe("elder", create("elder"))
    with pytest.raises(DriverUnavailable, match="talker answers probe with dict"):
        probe("talker", create("talker"))


def test_only_what_others_offer_has_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(distribution(tmp_path, "other = other_drivers:Driver\nfake = other_drivers:Driver")))

    assert [bool(entry_point_of(name)) for name in ("other", "fake", "cpu", "abacus")] == [True, False, False, False]


def test_naming_drivers_imports_none_of_them() -> None:
    script = "import sys; from drivers.registry import available; available(); print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert {"torch", "drivers.cpu", "drivers.fake"} & set(finished.stdout.split()) == set()


@pytest.mark.parametrize(
    ("name", "options"),
    [("cpu", {"nativ": "on"}), ("cpu", {"isa": "foo"}), ("cpu", {"cpus": "99999"}), ("cuda", {"graphs": "yes"})],
)
def test_settings_that_a_driver_refuses_are_refused_without_it(name: str, options: dict[str, str]) -> None:
    with pytest.raises(OptionUnknown, match="The driver refuses its settings"):
        registry.check_options(name, options)


def test_reading_settings_imports_no_library_that_computes() -> None:
    read_all = "[registry.check_options(name, {}) for name in registry.OPTION_READERS]"
    code = f"import sys; from drivers import registry; {read_all}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
