"""The login socket."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kerneld.errors import Unauthenticated
from syscalls import login
from syscalls.login import LoginServer, login_path, peer_of
from tests.syscalls.rig import FakeIdentity


def served(path: Path, identity: FakeIdentity, talk: Callable[[Path], Any]) -> Any:
    """Run a login server, and what a caller does to it on a thread."""

    async def main() -> Any:
        server = LoginServer(path, identity.login, "boot-1")
        await server.start()
        try:
            return await asyncio.to_thread(talk, login_path(path))
        finally:
            await server.stop()

    return asyncio.run(main())


def read_all(path: Path) -> bytes:
    """Connect and take what comes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        with connection.makefile("rb") as stream:
            return stream.read()


def test_a_caller_is_told_its_token_and_who_it_is(tmp_path: Path) -> None:
    identity = FakeIdentity()
    answer = json.loads(served(tmp_path / "k", identity, read_all))
    assert answer == {
        "token": next(iter(identity.logins)),
        "expires_at": 4e9,
        "principal": f"uid:{os.getuid()}",
        "tenant": "local",
        "boot_id": "boot-1",
    }


def test_the_machines_kernel_says_who_the_caller_is(tmp_path: Path) -> None:
    identity = FakeIdentity()
    served(tmp_path / "k", identity, read_all)
    uid, gid, groups = identity.peers[0]
    assert (uid, gid, set(groups)) == (os.getuid(), os.getgid(), set(os.getgroups()))


def test_a_refusal_says_why(tmp_path: Path) -> None:
    answer = json.loads(served(tmp_path / "k", FakeIdentity(refuses=True), read_all))
    assert answer["error"] == Unauthenticated.reason
    assert "Nobody has the uid" in answer["message"]


def test_a_caller_who_speaks_out_of_turn_hurts_nobody(tmp_path: Path) -> None:
    def talk(path: Path) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(path))
            connection.sendall(b"GET / HTTP/1.1\r\n" * 1000)
        return read_all(path)

    assert json.loads(served(tmp_path / "k", FakeIdentity(), talk))["token"]


def test_many_silent_callers_hold_nobody_up(tmp_path: Path) -> None:
    def talk(path: Path) -> bytes:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for connection in silent:
            connection.connect(str(path))
        line = read_all(path)
        for connection in silent:
            connection.close()
        return line

    assert json.loads(served(tmp_path / "k", FakeIdentity(), talk))["token"]


def test_everybody_may_connect_and_nothing_is_left(tmp_path: Path) -> None:
    mode = served(tmp_path / "k", FakeIdentity(), lambda path: stat.S_IMODE(path.stat().st_mode))
    assert mode == 0o666
    assert list(tmp_path.iterdir()) == []


def test_a_caller_in_more_groups_than_the_first_buffer_holds_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Crowded:
        """A socket of somebody in a hundred groups."""

        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            if option == socket.SO_PEERCRED:
                return login.UCRED.pack(1, 1000, 1000)
            if size < 400:
                raise OSError(34, "Numerical result out of range")
            return array.array("I", range(100)).tobytes()

    assert peer_of(Crowded()).groups == tuple(range(100))  # type: ignore[arg-type]
