"""The state directory: one daemon at a time, and clear refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.errors import DataLoss, WrongState
from kerneld.state.directory import StateDirectory


def test_a_new_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    directory = StateDirectory.open(tmp_path / "a" / "b")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert all(part.is_dir() for part in (directory.journal, directory.images, directory.audit))
    directory.close()
    directory.close()


def test_a_second_daemon_is_told_who_has_it(tmp_path: Path) -> None:
    first = StateDirectory.open(tmp_path)
    with pytest.raises(WrongState, match=f"pid {os.getpid()}") as caught:
        StateDirectory.open(tmp_path)
    assert caught.value.reason == "STATE_LOCKED"
    first.close()
    StateDirectory.open(tmp_path).close()


def test_a_daemon_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; from kerneld.state.directory import StateDirectory;"
        "StateDirectory.open(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=False)
    assert (tmp_path / "kerneld.lock").read_text().strip() != str(os.getpid())
    StateDirectory.open(tmp_path).close()


@pytest.mark.parametrize("database", [None, b""])
def test_a_journal_without_its_database_is_refused(tmp_path: Path, database: bytes | None) -> None:
    StateDirectory.open(tmp_path).close()
    (tmp_path / "journal" / "000000000001.log").write_bytes(b"x")
    if database is not None:
        (tmp_path / "kerneld.db").write_bytes(database)
    with pytest.raises(DataLoss, match="no database"):
        StateDirectory.open(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    with pytest.raises(Exception, match="state"):
        StateDirectory.open(tmp_path / "state")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Give a file system that cannot be written."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a file system")
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", [".", "new"])
def test_a_read_only_place_is_refused(read_only: Path, name: str) -> None:
    with pytest.raises(WrongState, match="cannot be written") as caught:
        StateDirectory.open(read_only / name)
    assert caught.value.reason == "STATE_READ_ONLY"
