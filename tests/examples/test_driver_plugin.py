"""The driver of the example: installed by pip as a stranger would, found by its entry point, conforming, and serving."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.rig import MODEL, ROOT, DaemonRig, until

PLUGIN = ROOT / "examples" / "driver_plugin"
SMALL = ("drivers.use=bag", "memory.device_bytes=64MiB", "memory.host_bytes=8MiB", "kerneld.disk_reserve_bytes=0")
PROMPT = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed in it, from a copy of its sources; nothing is fetched."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


def environment(site: Path) -> dict[str, str]:
    """Of a process that finds the installation."""
    paths = [str(ROOT), str(ROOT / "sdk" / "python"), str(site)]
    return {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(site.parent / "cache")}


@pytest.fixture(scope="module")
def verdict(site: Path) -> str:
    """What the conformance suite says of it, remembered beside the installation."""
    script = "from drivers.registry import available; from drivers.vetting import verdict_on; print(available(), verdict_on('bag'))"
    everything = {**os.environ, **environment(site)}
    finished = subprocess.run([sys.executable, "-P", "-c", script], env=everything, capture_output=True, text=True, check=True)
    return finished.stdout


def test_it_is_found_by_its_entry_point_and_passes_the_suite(verdict: str) -> None:
    assert "('bag', 'kerneld-bag-of-words 1.0')" in verdict
    assert "complaint=''" in verdict


def test_it_is_small_enough_to_be_read() -> None:
    assert len((PLUGIN / "kerneld_bag_of_words.py").read_text().splitlines()) <= 110


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon whose device the example runs, not started."""
    own = DaemonRig(tmp_path, *SMALL)
    yield own
    own.clean_up()


def test_a_daemon_serves_with_it_once_it_has_passed(rig: DaemonRig, site: Path, verdict: str) -> None:
    rig.start(**environment(site))
    with rig.connect() as k:
        k.load(MODEL, name="demo")
        streams = [k.alloc("demo").infer(tokens=PROMPT, max_tokens=20, temperature=0, ignore_eos=True) for _ in range(2)]
        first, second = (stream.result().tokens for stream in streams)
        assert first == second
        context = k.alloc("demo")
        context.infer(tokens=PROMPT, max_tokens=10, temperature=0, ignore_eos=True).result()
        rig.kill_worker(k)
        assert context.infer(max_tokens=10, temperature=0, ignore_eos=True).result().tokens == first[10:]
        [device] = k.devices()
        assert (device.driver, [model.runs_on for model in device.models]) == ("bag", ["a bag of words"])
    assert "is checked before its first use" not in rig.log_text()


def test_a_daemon_says_why_a_driver_is_refused(rig: DaemonRig, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "other" / "site")
    module = tmp_path / "other" / "site" / "kerneld_bag_of_words.py"
    module.write_text(module.read_text().replace("batch_invariant=True", "contract_version=9"))
    rig.start(**environment(module.parent))
    with rig.connect() as k:
        until(lambda: "bag 1.0 was written for version 9 of the driver contract; this kerneld speaks version 1" in rig.log_text())
        assert k.devices()[0].driver == ""
