"""The login socket: peer credentials -> a short-lived token.

gRPC does not tell a server who is at the other end of a unix socket; the kernel of the machine does (SO_PEERCRED, SO_PEERGROUPS). So there
is a second socket beside the first, `<socket>.login`. Whoever connects is told, in one line of JSON, and the connection is closed:

    {"token": "...", "expires_at": 1767225600.0, "principal": "...", "tenant": "...", "boot_id": "..."}
    {"error": "UNAUTHENTICATED", "message": "..."}

Nothing is read from the caller, so nobody can hold a connection open by being slow, and there is nothing to parse. The answer is smaller
than a socket buffer; a peer that takes none of it is dropped after `WRITE_TIMEOUT_S`.
"""

from __future__ import annotations

import array
import asyncio
import errno
import json
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kerneld.calls import Principal
from kerneld.errors import KernelError
from syscalls.sockets import BoundPath, ListenError, claim_path

logger = logging.getLogger(__name__)

SUFFIX = ".login"
WRITE_TIMEOUT_S = 2.0
BACKLOG = 128
MAX_CONNECTIONS = 256
UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid
SO_PEERGROUPS = 59  # asm-generic/socket.h; not in the socket module
MAX_GROUPS = 65_536  # NGROUPS_MAX of Linux


class LoginAnswer(Protocol):
    """What a login gives."""

    @property
    def secret(self) -> str: ...
    @property
    def principal(self) -> Principal: ...
    @property
    def expires_at(self) -> float: ...


# (uid, gid, groups) -> token. Raises: KernelError.
Login = Callable[[int, int, Sequence[int]], LoginAnswer]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the machine's kernel says."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def login_path(socket_path: Path) -> Path:
    """Where the login socket of a gRPC socket is."""
    return socket_path.with_name(socket_path.name + SUFFIX)


def peer_of(connection: socket.socket) -> Peer:
    """The credentials of the process that connected. Raises: OSError."""
    _, uid, gid = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return Peer(uid, gid, _groups_of(connection))


def _groups_of(connection: socket.socket) -> tuple[int, ...]:
    groups = array.array("I")
    try:
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 64 * groups.itemsize))
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # before Linux 4.13: the primary group is all there is to know
            return ()
        if error.errno != errno.ERANGE:
            raise
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_GROUPS * groups.itemsize))
    return tuple(groups)


class LoginServer:
    """Listens beside the gRPC socket."""

    def __init__(self, socket_path: Path, login: Login, boot_id: str) -> None:
        self.path = login_path(socket_path)
        self._login = login
        self._boot_id = boot_id
        self._num_connections = 0
        self._server: asyncio.Server | None = None
        self._bound: BoundPath | None = None

    async def start(self) -> None:
        """Begin to listen. Raises: ListenError."""
        claim_path(self.path)
        try:
            self._server = await asyncio.start_unix_server(self._answer, self.path, backlog=BACKLOG, limit=1024)
        except OSError as error:
            raise ListenError(f"Cannot listen on {self.path}: {error.strerror}.") from error
        self._bound = BoundPath(self.path)

    async def stop(self) -> None:
        """Stop listening and remove the socket file. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        if self._bound is not None:
            self._bound.release()
            self._bound = None

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            if self._num_connections <= MAX_CONNECTIONS:
                writer.write(self._line(writer.get_extra_info("socket")))
                await asyncio.wait_for(writer.drain(), WRITE_TIMEOUT_S)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), WRITE_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            logger.debug("a login went unanswered", extra={"why": str(error)})
            writer.transport.abort()
        finally:
            self._num_connections -= 1

    def _line(self, connection: socket.socket) -> bytes:
        try:
            peer = peer_of(connection)
            token = self._login(peer.uid, peer.gid, peer.groups)
        except KernelError as error:
            return _json_line({"error": error.reason, "message": error.message})
        except OSError as error:
            logger.warning("peer credentials could not be read", extra={"why": str(error)})
            return _json_line({"error": "UNAUTHENTICATED", "message": "The credentials of the connection could not be read."})
        answer: dict[str, str | float] = {"token": token.secret, "expires_at": token.expires_at, "principal": token.principal.name}
        return _json_line(answer | {"tenant": token.principal.tenant, "boot_id": self._boot_id})


def _json_line(answer: dict[str, str | float]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
