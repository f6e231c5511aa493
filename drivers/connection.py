"""One worker's socket on the front's event loop: messages in, messages out, and its end, told exactly once.

    OPEN --end of stream, socket error, bad message, process gone--> LOST

Invariants
1. `on_lost` is called once, after every message that the worker managed to send, and nothing is delivered after it.
2. It is called from the event loop, never from within `send` or `kill`.
3. After `kill` it is called only when the process can write no more (its end was seen), so its frames may be lent again.

Death is seen twice: the stream ends at once, unless some other process still has a copy of the descriptor; the pidfd becomes readable
whatever else happens. The reads are made here rather than by an asyncio transport so that the second can empty the stream first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable

from drivers.errors import WireError
from drivers.wire import RECEIVE_BYTES, Decoder, Message, encode

_CREDENTIALS = struct.Struct("3i")
_SO_PEERPIDFD = 77  # Linux 6.5; not yet named by the socket module


class Connection:
    """A connected, non-blocking socket to a worker."""

    def __init__(self, sock: socket.socket, decoder: Decoder, loop: asyncio.AbstractEventLoop) -> None:
        """Take over a socket after its handshake. Nothing is read before `start`."""
        self._sock = sock
        self._decoder = decoder
        self._loop = loop
        self._pidfd = open_peer_pidfd(sock)
        self._outgoing = bytearray()
        self._reason = ""
        self._on_message: Callable[[Message], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self.is_lost = False

    def start(self, on_message: Callable[[Message], None], on_lost: Callable[[str], None]) -> None:
        """Deliver messages from now on, and the end."""
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop.add_reader(self._sock, self._read)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._process_ended)

    def send(self, message: Message) -> None:
        """Write a message now, or what the socket does not take at once as soon as it does. To a dead worker it goes nowhere."""
        frame = encode(message)
        if self.is_lost:
            return
        if self._outgoing:
            self._outgoing += frame
            return
        sent = self._send_some(frame)
        if sent < len(frame):
            self._outgoing += frame[sent:]
            self._loop.add_writer(self._sock, self._write)

    def give_reason(self, reason: str) -> None:
        """Say why the end, when it comes, will have come."""
        self._reason = self._reason or reason

    def kill(self, reason: str) -> None:
        """End the process behind the socket; its end is told when it has come. Without its pidfd, only hang up."""
        self.give_reason(reason)
        if self._pidfd is None:
            self._loop.call_soon(self._lose, reason)
            return
        with contextlib.suppress(ProcessLookupError):  # it went by itself
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def hang_up(self) -> None:
        """Leave the worker to itself: close the socket and tell nobody."""
        self._on_lost = None
        self._lose("hung up")

    def _read(self) -> bool:
        """Deliver what has come, and say whether there may be more."""
        try:
            chunk = self._sock.recv(RECEIVE_BYTES)
            messages = self._decoder.feed(chunk)
        except BlockingIOError:
            return False
        except (OSError, WireError) as error:
            self._lose(str(error))
            return False
        for message in messages:
            if self._on_message is not None and not self.is_lost:
                self._on_message(message)
        if not chunk:
            self._lose("The worker closed its socket.")
        return bool(chunk) and not self.is_lost

    def _process_ended(self) -> None:
        while self._read():
            pass
        self._lose("The worker process ended.")

    def _write(self) -> None:
        sent = self._send_some(self._outgoing)
        del self._outgoing[:sent]
        if not self._outgoing:
            self._loop.remove_writer(self._sock)

    def _send_some(self, frame: bytes | bytearray) -> int:
        try:
            return self._sock.send(frame)
        except BlockingIOError:
            return 0
        except OSError:
            return len(frame)  # the reader meets the same end, after what came before it (invariant 2)

    def _lose(self, reason: str) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self._on_lost is not None:
            self._on_lost(self._reason or reason)


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the process that connected, as the kernel knows them; pid 0 if it lives in another pid namespace."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def open_peer_pidfd(sock: socket.socket) -> int | None:
    """Return a pidfd of the process that connected, or None if it is gone or cannot be seen from here."""
    with contextlib.suppress(OSError):  # an older kernel
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    pid, _ = peer_credentials(sock)
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid)
    return None
