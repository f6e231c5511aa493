"""Who we are to the daemon."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kerneld_client.credential import Credential
from kerneld_client.errors import KerneldError, PermissionDenied, Unauthenticated, Unavailable
from kerneld_client.target import resolve


def answering(path: Path, lines: list[bytes]) -> threading.Thread:
    """Somebody who answers each connection to a login socket with the next line."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.login")
    listener.listen()

    def serve() -> None:
        with listener:
            for line in lines:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(line)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def good(token: str, expires_at: float) -> bytes:
    """A login's answer."""
    return f'{{"token": "{token}", "expires_at": {expires_at}, "principal": "p", "tenant": "t", "boot_id": "b"}}\n'.encode()


BLOCKING: Callable[[Credential], object] = Credential.metadata
AWAITED: Callable[[Credential], object] = lambda credential: asyncio.run(credential.metadata_async())  # noqa: E731


@pytest.mark.parametrize("ask", [BLOCKING, AWAITED])
def test_a_login_is_kept_until_it_is_about_to_expire(tmp_path: Path, ask: Callable[[Credential], object]) -> None:
    thread = answering(tmp_path / "k", [good("one", time.time() + 5), good("two", time.time() + 500)])
    credential = Credential(resolve(tmp_path / "k"))
    assert ask(credential) == (("authorization", "Bearer one"),)
    assert ask(credential) == (("authorization", "Bearer two"),)
    assert ask(credential) == (("authorization", "Bearer two"),)
    thread.join()


def test_a_login_that_was_refused_is_forgotten_and_a_newer_one_is_not(tmp_path: Path) -> None:
    thread = answering(tmp_path / "k", [good("one", 4e9), good("two", 4e9)])
    credential = Credential(resolve(tmp_path / "k"))
    first = credential.metadata()
    credential.forget(first)
    assert credential.ready() is None
    second = credential.metadata()
    credential.forget(first)  # another thread was late
    assert credential.ready() == second
    thread.join()


@pytest.mark.parametrize("ask", [BLOCKING, AWAITED])
@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", Unavailable),
        (b"not json\n", Unavailable),
        (b"[]\n", Unavailable),
        (b'"text"\n', Unavailable),
        (b'{"token": "cut', Unavailable),
        (b'{"token": "x", "expires_at": "soon"}\n', Unavailable),
        (b'{"error": "UNAUTHENTICATED", "message": "Who?"}\n', Unauthenticated),
        (b'{"error": "PERMISSION_DENIED", "message": "No."}\n', PermissionDenied),
        (b"x" * 100_000 + b"\n", Unavailable),
    ],
)
def test_an_odd_answer_is_a_typed_error(
    tmp_path: Path, ask: Callable[[Credential], object], line: bytes, error: type[KerneldError]
) -> None:
    thread = answering(tmp_path / "k", [line])
    with pytest.raises(error):
        ask(Credential(resolve(tmp_path / "k")))
    thread.join()


def test_an_api_token_is_never_renewed() -> None:
    credential = Credential(resolve("localhost:1", token="t"))
    credential.forget(credential.metadata())
    assert credential.ready() == (("authorization", "Bearer t"),)
    assert not credential.is_renewable
