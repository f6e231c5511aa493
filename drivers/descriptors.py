"""File descriptors that travel beside a message of the handshake (SCM_RIGHTS)."""

from __future__ import annotations

import socket
import struct

from drivers.wire import RECEIVE_BYTES, Message, encode

_DESCRIPTOR = struct.Struct("i")


def send_with_fd(sock: socket.socket, message: Message, fd: int | None) -> None:
    """Send a message of the handshake on a socket with room, and a descriptor beside it; the descriptor stays the caller's."""
    frame = encode(message)
    sent = socket.send_fds(sock, [frame], [] if fd is None else [fd])
    if sent < len(frame):
        sock.sendall(frame[sent:])


def receive_with_fd(sock: socket.socket) -> tuple[bytes, int | None]:
    """Return what has come during the handshake, and the descriptor beside it, which is the caller's now; b"" at the end of the stream."""
    # Not socket.recv_fds: up to Python 3.12 it drops its flags, and the descriptor would be inherited by every process started later.
    chunk, beside, _, _ = sock.recvmsg(RECEIVE_BYTES, socket.CMSG_LEN(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(content) == _DESCRIPTOR.size:
            return chunk, _DESCRIPTOR.unpack(content)[0]
    return chunk, None
