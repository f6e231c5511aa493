"""Who we are to the daemon: an API token, or a login that is renewed when it runs out or the daemon was restarted."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import dataclass

from kerneld_client.errors import BY_CODE, KerneldError, Unauthenticated, Unavailable
from kerneld_client.target import Target

LOGIN_TIMEOUT_S = 5.0
MAX_LINE_BYTES = 64 << 10
RENEW_BEFORE_S = 10.0

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One login."""

    token: str
    expires_at: float

    @property
    def is_good(self) -> bool:
        """Whether it will last for a while."""
        return self.expires_at == 0 or time.time() < self.expires_at - RENEW_BEFORE_S


class Credential:
    """The metadata of a target's calls. Safe to use from several threads."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._ticket = Ticket(target.token, 0.0) if target.token else None
        self._aio_lock = asyncio.Lock()

    @property
    def is_renewable(self) -> bool:
        """Whether logging in again may help."""
        return bool(self._target.login_path)

    def ready(self) -> Metadata | None:
        """The metadata, where no login is needed for it."""
        if not self.is_renewable:
            return _metadata(self._target.token) if self._target.token else ()
        ticket = self._ticket
        return _metadata(ticket.token) if ticket is not None and ticket.is_good else None

    def forget(self, metadata: Metadata) -> None:
        """The daemon did not take this login; the next call logs in again, unless somebody did meanwhile."""
        ticket = self._ticket
        if self.is_renewable and ticket is not None and _metadata(ticket.token) == metadata:
            self._ticket = None

    def metadata(self) -> Metadata:
        """The metadata, after logging in if need be. Raises: Unavailable, Unauthenticated."""
        with self._lock:
            ready = self.ready()
            if ready is not None:
                return ready
            self._ticket = _parse(login_line(self._target.login_path), self._target.login_path)
            return _metadata(self._ticket.token)

    async def metadata_async(self) -> Metadata:
        """The same, without holding up the event loop."""
        async with self._aio_lock:
            ready = self.ready()
            if ready is not None:
                return ready
            self._ticket = _parse(await login_line_async(self._target.login_path), self._target.login_path)
            return _metadata(self._ticket.token)


def login_line(path: str) -> bytes:
    """What the login socket says. Raises: Unavailable, if nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LOGIN_TIMEOUT_S)
        try:
            connection.connect(path)
            with connection.makefile("rb") as stream:
                return stream.readline(MAX_LINE_BYTES)
        except OSError as error:
            raise _nobody_there(path, error) from error


async def login_line_async(path: str) -> bytes:
    """The same, without holding up the event loop."""
    try:
        async with asyncio.timeout(LOGIN_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)
            try:
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError) as error:  # ValueError: a line longer than the limit
        raise _nobody_there(path, error) from error


def _nobody_there(path: str, error: OSError | ValueError) -> Unavailable:
    why = getattr(error, "strerror", None) or str(error) or "no answer in time"
    return Unavailable(f"No kerneld daemon answers at {path.removesuffix('.login')} ({why}). Is it running?")


def _parse(line: bytes, path: str) -> Ticket:
    if not line.endswith(b"\n"):
        raise Unavailable(f"The daemon at {path} closed the connection before it had answered.")
    try:
        answer = json.loads(line)
        if "token" in answer:
            return Ticket(str(answer["token"]), float(answer["expires_at"]))
        raise _refused(str(answer["error"]), str(answer["message"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"What answers at {path} is not kerneld's login socket.") from error


def _refused(reason: str, message: str) -> KerneldError:
    cls = next((cls for code, cls in BY_CODE.items() if code.name == reason), Unauthenticated)
    return cls(message, reason=reason)


def _metadata(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)
