"""Faults of native code, seen from outside: whatever becomes of a kernel, the daemon serves, and says what computes in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.native.build import is_whole
from kerneld_client import Client
from kerneld_client.device_values import Device
from tests.e2e.conftest import SMALL
from tests.e2e.rig import MODEL, ROOT, DaemonRig, stream_all

PROMPT = "import os\n\ndef "
NUM_TOKENS = 24


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon of the test's own, not started, with a cache of its own."""
    own = DaemonRig(tmp_path, *SMALL)
    yield own
    own.clean_up()


def spoken(k: Client) -> tuple[int, ...]:
    """What the demo model says."""
    return k.alloc("demo").infer(PROMPT, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True).result().tokens


def device_of(k: Client) -> Device:
    """The only device, with the demo model on it."""
    [device] = k.devices()
    return device


def kernelctl(rig: DaemonRig, *arguments: str) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
    command = [sys.executable, "-P", "-m", "cli.main", "--socket", str(rig.socket), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True).stdout


def test_a_kernel_that_disagrees_is_quarantined_and_its_definition_serves(tmp_path: Path, k: Client) -> None:
    rig = DaemonRig(tmp_path, *SMALL, 'drivers.options={ disagree = "native.linear_add" }')
    rig.start()
    try:
        with rig.connect() as doubted:
            doubted.load(MODEL, name="demo")
            [model] = device_of(doubted).models
            assert model.runs_on.startswith("native code")
            assert [op.implementation for op in model.ops if op.is_quarantined] == ["native.linear_add"]
            assert "native.linear_add" not in {op.implementation for op in model.ops if not op.is_quarantined}
            assert spoken(doubted) == spoken(k)
        assert "native.linear_add (quarantined)" in kernelctl(rig, "device", "show")
        assert rig.log_text().count("disagrees with its definition") == 1
    finally:
        rig.clean_up()


def test_without_a_compiler_torch_serves_and_what_to_install_is_said(rig: DaemonRig, k: Client, tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path / "empty"), "CC": "", "CXX": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    rig.start(**nothing)
    with rig.connect() as bare:
        bare.load(MODEL, name="demo")
        [model] = device_of(bare).models
        assert model.runs_on.startswith("torch, ")
        assert "there is no C++ compiler (c++); on Debian and Ubuntu: sudo apt install g++" in model.runs_on
        assert spoken(bare) == spoken(k)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
    command = [sys.executable, "-P", "-m", "cli.daemon", "doctor", f"--state={rig.state}", f"--socket={rig.socket}"]
    doctor = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, **nothing}, capture_output=True, text=True, check=False)
    assert "sudo apt install g++" in " ".join(doctor.stdout.split())


def test_a_damaged_library_is_made_again_before_it_is_used(rig: DaemonRig, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "kerneld" / "native"
    folder.mkdir(parents=True, mode=0o700)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CACHE_DIRECTORY": ""}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])
    build = [sys.executable, "-P", "-c", "from drivers.native.build import library; assert library('pages')"]
    subprocess.run(build, env={**os.environ, "PYTHONPATH": paths, **environment}, check=True)
    [library] = folder.glob("pages-*.so")
    library.write_bytes(library.read_bytes()[:-100])
    assert not is_whole(library)

    rig.start(**environment, KERNELD_DRIVERS__OPTIONS='{ native = "off" }')
    with rig.connect() as k:
        rig.worker_pid(k)
        k.load(MODEL, name="demo")
        assert len(spoken(k)) == NUM_TOKENS
    assert is_whole(library)


def test_a_worker_that_crashes_in_native_code_is_replaced_and_streams_go_on(rig: DaemonRig) -> None:
    rig.start()
    with rig.connect() as k:
        k.load(MODEL, name="demo")
        alone = spoken(k)
        pid = rig.worker_pid(k)
        outputs = stream_all([k.alloc("demo") for _ in range(4)], [PROMPT] * 4, 200, lambda: rig.signal_worker(k, signal.SIGSEGV))
        assert [tuple(output[:NUM_TOKENS]) for output in outputs] == [alone] * 4
        assert {len(output) for output in outputs} == {200}
        assert outputs.count(outputs[0]) == 4
        assert rig.worker_pid(k) != pid
