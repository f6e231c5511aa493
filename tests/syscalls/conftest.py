"""A running server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kerneld.config import SyscallsConfig
from tests.syscalls.fake_kernel import FakeKernel
from tests.syscalls.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A server on a unix socket in a temporary folder."""
    rig = Rig(SyscallsConfig(socket=tmp_path / "k.sock"), FakeKernel())
    rig.start()
    yield rig
    rig.close()


@pytest.fixture
def channel(rig: Rig) -> Iterator[grpc.Channel]:
    """A bare channel to it."""
    with grpc.insecure_channel(f"unix:{rig.path}") as channel:
        yield channel
