"""Daemons for end-to-end tests: one shared by tests that only use it, and one of its own for each that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld_client import Client
from tests.e2e.rig import MODEL, DaemonRig

SMALL = ("memory.device_bytes=128MiB", "memory.host_bytes=64MiB", "drivers.threads=1")


@pytest.fixture(scope="session")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonRig]:
    """A daemon that nobody breaks."""
    rig = DaemonRig(tmp_path_factory.mktemp("shared"), *SMALL)
    rig.start()
    yield rig
    rig.clean_up()


@pytest.fixture
def k(shared_rig: DaemonRig) -> Iterator[Client]:
    """A client of the shared daemon, with the demo model loaded as "demo"."""
    with shared_rig.connect() as client:
        client.load(str(MODEL), name="demo")
        yield client


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon of the test's own, started."""
    own = DaemonRig(tmp_path, *SMALL)
    own.start()
    yield own
    own.clean_up()
