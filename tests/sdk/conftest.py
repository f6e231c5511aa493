"""A running daemon's face for the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kerneld_client
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
def client(rig: Rig) -> Iterator[kerneld_client.Client]:
    """A client of it."""
    with kerneld_client.connect(rig.path, timeout_s=10) as client:
        yield client
