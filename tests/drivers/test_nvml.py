"""Facts of devices, through the real bindings, from a library that is not NVIDIA's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# total used own temperature milliwatts limit throttles errors pending; the reasons are power (4) and heat (32)
WELL = "H100 80000 9000 7000 61 312500 700000 1 0 0"
HOT = "A100 80000 9000 -1 92 -1 400000 36 3 1"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library."""
    folder = tmp_path_factory.mktemp("nvml")
    source, target = ROOT / "tests/drivers/fake_nvml.c", folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(target), str(source)], check=True)
    return folder


def said(library: Path, devices: tuple[str, ...] | None, expression: str) -> object:
    """The value of an expression over `nvml`, in a process of its own; or the name and text of the error."""
    state = library / "state"
    state.unlink(missing_ok=True)
    if devices is not None:
        state.write_text("".join(f"{device}\n" for device in devices))
    script = f"""
import json
from dataclasses import asdict
from drivers import nvml
from drivers.errors import DriverError
try:
    print(json.dumps({expression}))
except DriverError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    environment = {**os.environ, "FAKE_NVML_STATE": str(state), "LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(ROOT)}
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    answer: object = json.loads(finished.stdout)
    return answer


def test_a_device_says_what_it_is_and_who_holds_its_memory(library: Path) -> None:
    facts = said(
        library, (WELL, HOT), "{**asdict(nvml.read_facts(0)), 'foreign': nvml.read_facts(0).foreign_bytes, 'num': nvml.num_devices()}"
    )

    assert isinstance(facts, dict)
    assert facts | {"throttles": [], "capability": [9, 0]} == facts
    assert (facts["name"], facts["driver_version"], facts["num"]) == ("H100", "999.fake", 2)
    assert (facts["total_bytes"], facts["used_bytes"], facts["own_bytes"], facts["foreign"]) == (80000, 9000, 7000, 2000)
    assert (facts["temperature_c"], facts["power_w"], facts["power_limit_w"]) == (61, 312.5, 700.0)
    assert (facts["utilization_percent"], facts["uncorrected_errors"], facts["pending_rows"]) == (None, 0, False)


def test_what_a_person_should_look_at_is_said_and_what_is_not_known_is_none(library: Path) -> None:
    told = said(library, (HOT,), "[(f := nvml.read_facts(0)).complaints, f.power_w, f.foreign_bytes, nvml.health(0)]")

    assert isinstance(told, list)
    assert [complaint.split(";")[0] for complaint in told[0]] == [
        "its clocks are held down by power",
        "its clocks are held down by heat",
        "3 memory errors were not corrected",
        "rows of its memory wait to be replaced",
    ]
    assert told[1:3] == [None, 9000]
    assert told[3].startswith("NVML says of it: its clocks")


def test_a_device_is_found_by_its_uuid_and_who_else_has_its_memory_is_told(library: Path) -> None:
    assert said(library, (WELL, HOT), "[nvml.read_facts('GPU-1').name, nvml.others('GPU-0'), nvml.others('GPU-7')]") == [
        "A100",
        "Other processes and the driver hold 2000 bytes; nvidia-smi names them.",
        "",
    ]


def test_a_lost_device_says_how_to_have_it_back(library: Path) -> None:
    error, text = said(library, ("lost " + WELL,), "nvml.read_facts(0)")  # type: ignore[misc]

    assert error == "DeviceLost"
    assert "GPU is lost" in text
    assert "nvidia-smi --gpu-reset" in text
    assert said(library, ("lost " + WELL,), "nvml.health(0)") == text.removeprefix("The device or its worker process is gone. ")


def test_a_driver_that_does_not_answer_and_a_device_that_is_not_there(library: Path) -> None:
    assert said(library, None, "nvml.num_devices()")[0] == "DriverUnavailable"  # type: ignore[index]
    assert said(library, (WELL,), "nvml.read_facts(4)")[0] == "DriverUnavailable"  # type: ignore[index]
    assert said(library, (WELL,), "nvml.health(0)") == ""


def test_a_machine_without_the_library_has_no_devices(tmp_path: Path) -> None:
    if subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout.count("libnvidia-ml.so.1"):
        pytest.skip("NVIDIA's library is installed here")

    assert said(tmp_path, (), "nvml.num_devices()") == 0
