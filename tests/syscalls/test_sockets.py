"""Taking and giving back the path of a unix socket."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syscalls.sockets import BoundPath, ListenError, claim_path


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Somebody who listens at tmp_path / "s"."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        yield listener


def test_the_folder_of_a_new_socket_is_made(tmp_path: Path) -> None:
    claim_path(tmp_path / "run" / "kerneld" / "s")
    assert (tmp_path / "run" / "kerneld").is_dir()


def test_a_socket_of_a_living_daemon_is_left_alone(listener: socket.socket, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="Another daemon listens"):
        claim_path(tmp_path / "s")
    assert (tmp_path / "s").exists()


def test_a_socket_of_a_dead_daemon_is_removed(listener: socket.socket, tmp_path: Path) -> None:
    listener.close()
    claim_path(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ListenError, match="is no socket"):
        claim_path(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="longer than the 107 bytes"):
        claim_path(tmp_path / ("s" * 120))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ListenError, match="Cannot listen on"):
        claim_path(tmp_path / "file" / "s")


def test_everybody_may_connect_to_a_bound_socket(listener: socket.socket, tmp_path: Path) -> None:
    BoundPath(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o666


def test_release_removes_ones_own_socket_twice_without_harm(listener: socket.socket, tmp_path: Path) -> None:
    bound = BoundPath(tmp_path / "s")
    bound.release()
    bound.release()
    assert not (tmp_path / "s").exists()


def test_release_leaves_a_socket_that_somebody_else_put_there(listener: socket.socket, tmp_path: Path) -> None:
    bound = BoundPath(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "old")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        bound.release()
        assert (tmp_path / "s").exists()
