"""The units as systemd itself judges them, without starting anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kerneld.settings import load_config

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
INSTALLED_PYTHON = "/opt/kerneld/bin/python"
MAX_EXPOSURE = 2.0

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Our units, with an interpreter that exists on this machine."""
    for unit in UNITS.glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED_PYTHON, sys.executable))
    return tmp_path


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze in the folder."""
    return subprocess.run(["systemd-analyze", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@needs_analyze
def test_units_are_free_of_errors_and_warnings(folder: Path) -> None:
    verified = analyze(folder, "verify", "--recursive-errors=yes", "./kerneld.service", "./kerneld-worker@cpu.service")

    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@needs_analyze
@pytest.mark.parametrize("unit", ["kerneld.service", "kerneld-worker@.service"])
def test_units_expose_little(folder: Path, unit: str) -> None:
    judged = analyze(folder, "security", "--offline=true", f"--threshold={MAX_EXPOSURE * 10:.0f}", f"./{unit}")

    assert judged.returncode == 0, judged.stdout[-400:]


def test_a_worker_is_not_tied_to_the_daemon() -> None:
    lines = (UNITS / "kerneld-worker@.service").read_text().splitlines()

    assert [line for line in lines if line.startswith(("PartOf=", "BindsTo=", "Requires=", "After="))] == []


def test_the_sample_configuration_is_good_and_leaves_the_workers_to_systemd() -> None:
    config = load_config(UNITS / "kerneld.toml", {})

    assert not config.kerneld.start_workers
    assert str(config.kerneld.worker_socket) in (UNITS / "kerneld-worker@.service").read_text()
    assert f"kerneld-worker@{config.drivers.use}.service" in (UNITS / "kerneld.service").read_text()
    assert config.kerneld.drain_timeout_s < 60, "TimeoutStopSec= of the unit"
