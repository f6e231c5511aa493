"""Where workers come in: the unix socket of the front, and the handshake that turns a connection into a WorkerClient.

Who may come: a process of the front's own user, or root (SO_PEERCRED, never the caller's word), that knows the secret if there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from drivers.client import WorkerClient
from drivers.connection import Connection, peer_credentials
from drivers.contract import CONTRACT_VERSION, OpenSpec
from drivers.descriptors import receive_with_fd, send_with_fd
from drivers.errors import DeviceLost, DriverError, DriverUnavailable, WireError
from drivers.failure import restore_error
from drivers.wire import (
    RECEIVE_BYTES,
    Decoder,
    Failed,
    Hello,
    Message,
    Opened,
    Refused,
    Welcome,
    expect,
    front_decoder,
)

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 120.0  # taking and touching an arena of 100 GiB takes about 40 s


@dataclass(frozen=True, slots=True)
class Admission:
    """What a worker gets: a generation (from 1 up), memory, and a host tier unless it keeps its own. `host_fd` stays the giver's."""

    boot_generation: int
    open: OpenSpec
    host_fd: int | None = None


class Reception(Protocol):
    """Decides about workers that come in. Every method is called on the event loop and must not block."""

    def admit(self, hello: Hello, host_fd: int | None) -> Admission:
        """Say what the worker gets; `host_fd` is the host tier that it kept, and the receiver's to close.

        Raises: DriverError, to refuse it for good: the worker exits.
        """

    def ready(self, worker: WorkerClient) -> None:
        """Take a worker that is ready for requests and plans."""

    def failed(self, hello: Hello, error: DriverError) -> None:
        """Hear why an admitted worker did not become ready: its driver could not open, or it went away."""


class WorkerListener:
    """Listens for workers until closed."""

    def __init__(self, path: Path, reception: Reception, secret: str = "") -> None:
        """Prepare; `secret` "" asks for none."""
        self._path = path
        self._reception = reception
        self._secret = secret
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()  # the listening one, and those whose handshake is on its way

    def start(self) -> None:
        """Bind the socket, with mode 0600, and accept on the running loop. Raises: OSError, if the path is taken by a living process."""
        _remove_stale(self._path)
        with contextlib.ExitStack() as undo:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            undo.callback(sock.close)
            sock.bind(str(self._path))
            self._path.chmod(0o600)  # nobody can connect before `listen`
            sock.listen()
            undo.pop_all()
        self._sockets.add(sock)
        self._spawn(self._accept(sock))

    async def close(self) -> None:
        """Stop accepting, drop handshakes on their way, and remove the socket. Ready workers are not touched."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._sockets:  # of tasks that were cancelled before they began
            self._sockets.pop().close()
        self._path.unlink(missing_ok=True)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listening)
            self._sockets.add(sock)
            self._spawn(self._meet(sock))

    async def _meet(self, sock: socket.socket) -> None:
        """Do the handshake with one connection, which is closed unless it becomes a ready worker."""
        decoder = front_decoder()
        with contextlib.ExitStack() as undo:
            undo.callback(self._drop, sock)
            try:
                hello, admission = await self._admit(sock, decoder)
            except (OSError, WireError) as error:
                logger.warning("Worker turned away", extra={"reason": str(error)})
                return
            except DriverError as error:
                logger.error("Worker refused", extra={"reason": str(error)})
                send_with_fd(sock, Refused(str(error)), None)
                return
            try:
                opened = await self._open(sock, decoder, admission)
            except (OSError, DriverError) as error:
                self._reception.failed(hello, error if isinstance(error, DriverError) else DeviceLost(str(error) or type(error).__name__))
                return
            undo.pop_all()
        self._sockets.discard(sock)
        connection = Connection(sock, decoder, asyncio.get_running_loop())
        self._reception.ready(WorkerClient(connection, hello, admission.boot_generation, opened))

    def _drop(self, sock: socket.socket) -> None:
        self._sockets.discard(sock)
        sock.close()

    async def _admit(self, sock: socket.socket, decoder: Decoder) -> tuple[Hello, Admission]:
        """Raises: OSError, WireError, to drop the connection; another DriverError, to refuse the worker for good."""
        _, uid = peer_credentials(sock)
        if uid not in (os.getuid(), 0):
            raise WireError(f"User {uid} may not connect.")
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello, host_fd = await _receive_hello(sock, decoder)
        with contextlib.ExitStack() as undo:
            if host_fd is not None:
                undo.callback(os.close, host_fd)
            if hello.contract_version != CONTRACT_VERSION:
                raise DriverUnavailable(f"It speaks contract version {hello.contract_version}, the front {CONTRACT_VERSION}.")
            if self._secret and not hmac.compare_digest(hello.secret.encode(), self._secret.encode()):
                raise DriverUnavailable("It does not know the secret.")
            undo.pop_all()
        return hello, self._reception.admit(hello, host_fd)

    async def _open(self, sock: socket.socket, decoder: Decoder, admission: Admission) -> Opened:
        """Raises: OSError, WireError, or the error that the driver met."""
        send_with_fd(sock, Welcome(admission.boot_generation, admission.open), admission.host_fd)
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            answer = await _receive(sock, decoder)
        if isinstance(answer, Failed):
            raise restore_error(answer)
        return expect(answer, Opened)


async def _receive_hello(sock: socket.socket, decoder: Decoder) -> tuple[Hello, int | None]:
    """Return the first message and the descriptor beside it, which is the caller's. Raises: OSError, WireError; then none is left open."""
    with contextlib.ExitStack() as undo:
        host_fd: int | None = None
        messages: list[Message] = []
        while not messages:
            await _readable(sock)
            chunk, fd = receive_with_fd(sock)
            if fd is not None:
                undo.callback(os.close, fd)
                host_fd = fd
            messages = _feed(decoder, chunk)
        hello = expect(messages[0], Hello)
        undo.pop_all()
        return hello, host_fd


async def _receive(sock: socket.socket, decoder: Decoder) -> Message:
    """Return the next message of the handshake. Raises: OSError, WireError."""
    messages: list[Message] = []
    while not messages:
        messages = _feed(decoder, await asyncio.get_running_loop().sock_recv(sock, RECEIVE_BYTES))
    return messages[0]


def _feed(decoder: Decoder, chunk: bytes) -> list[Message]:
    """Decode during the handshake, where each side waits for the other: one message at a time."""
    if not chunk:
        raise ConnectionResetError("end of stream")
    messages = decoder.feed(chunk)
    if len(messages) > 1:
        raise WireError("The worker did not wait for its answer.")
    return messages


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _mark, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _mark(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises: OSError, if somebody does, or if it is no socket."""
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(f"another process listens on {path}")
