"""Generated code is what the interface says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PB = ROOT / "sdk/python/kerneld_client/pb"


@pytest.mark.parametrize("name", ["syscalls_pb2.py", "syscalls_pb2.pyi", "syscalls_pb2_grpc.py"])
def test_what_is_committed_is_what_would_be_generated(name: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", "-I", f"kerneld_client/pb={ROOT}/proto", *outputs]
    subprocess.run([*command, f"{ROOT}/proto/syscalls.proto"], cwd=ROOT, check=True)
    assert (tmp_path / "kerneld_client/pb" / name).read_text() == (PB / name).read_text(), "run make proto"
