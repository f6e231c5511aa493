"""What stays while fronts come and go: a worker's driver, its models and its host tier.

    connecting --Welcome, Opened--> serving --front gone--> connecting (orphan: driver, weights and host tier are kept)
        |                              |
        | grace over                   | Shutdown, stop flag, driver broken
        v                              v
       end                            end

Invariants
1. What Hello says is held is all that is held: no load is on its way while a connection is made.
2. The driver is opened anew unless the front asks for exactly the memory that is open, and attaches no other host tier.
3. A front of an older boot generation than the last one served is not served again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from dataclasses import dataclass

from drivers import registry
from drivers.contract import Capabilities, Driver
from drivers.descriptors import receive_with_fd, send_with_fd
from drivers.errors import DriverError, WireError
from drivers.failure import describe_error
from drivers.server import Ending, Held, Server, StopFlag
from drivers.wire import (
    Decoder,
    Hello,
    Message,
    Opened,
    Refused,
    Welcome,
    encode,
    expect,
    worker_decoder,
)

logger = logging.getLogger(__name__)

WELCOME_TIMEOUT_S = 60.0
FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class StationOptions:
    """Who the worker is, where its front is, and how long it waits for one."""

    socket_path: str
    device: str
    driver: str
    orphan_grace_s: float = 15.0
    secret: str = ""


class Hopeless(Exception):
    """Starting this worker again would end the same way."""


class Station:
    """A driver, what it holds, and the way from one front to the next."""

    def __init__(self, options: StationOptions, stop: StopFlag) -> None:
        """Prepare the driver, without opening it. Raises: DriverNotFound, DriverUnavailable."""
        self._options = options
        self._stop = stop
        self._driver: Driver = registry.create(options.driver)
        self._capabilities: Capabilities = registry.probe(options.driver, self._driver)
        self._held: Held | None = None
        self._host_fd: int | None = None
        self._boot_generation = 0
        self._is_loading = False
        self._alone_since = time.monotonic()
        self._retry_s = FIRST_RETRY_S

    def run(self) -> Ending:
        """Serve one front after the other, until one of them or the stop flag says it is enough, or none comes within the grace."""
        while (sock := self._connect()) is not None:
            with sock:
                ending = self._serve(sock)
            if ending is not Ending.FRONT_LOST:
                return ending
        return Ending.STOPPED if self._stop.is_set else Ending.GRACE_OVER

    @property
    def was_opened(self) -> bool:
        """Whether any front has been served."""
        return self._boot_generation > 0

    def close(self) -> None:
        """Give the device back; with a load still on its way, that is left to the end of the process."""
        if not self._is_loading:
            self._driver.close()
        self._drop_host_fd()

    def _connect(self) -> socket.socket | None:
        """Return a connection to the front, or None if there was none for longer than the grace, or the stop flag is set."""
        while not self._stop.is_set:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self._options.socket_path)
                return sock
            except OSError as error:
                sock.close()
                logger.debug("Front not there", extra={"reason": str(error)})
            if time.monotonic() - self._alone_since > self._options.orphan_grace_s:
                break
            self._back_off()
        return None

    def _back_off(self) -> None:
        select.select([self._stop.fileno()], [], [], self._retry_s)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _serve(self, sock: socket.socket) -> Ending:
        """Meet the front behind a fresh connection and serve it. Raises: Hopeless, DriverError."""
        decoder = worker_decoder()
        try:
            welcome, host_fd = self._meet(sock, decoder)
        except (OSError, WireError) as error:
            return self._lose(error)
        if welcome is None:
            return Ending.STOPPED
        held = self._prepare(sock, welcome, host_fd)
        try:
            sock.sendall(encode(Opened(self._capabilities, tuple(held.models.values()), held.copies)))
        except OSError as error:
            return self._lose(error)
        server = Server(sock, decoder, held, welcome.boot_generation, self._stop)
        logger.info("Serving", extra={"boot_generation": welcome.boot_generation, "models_kept": len(held.models)})
        ending = server.serve()
        self._await_side_thread(server)
        self._alone_since = time.monotonic()
        self._retry_s = FIRST_RETRY_S
        return ending

    def _lose(self, error: Exception) -> Ending:
        """Note that a connection led nowhere. The grace goes on counting, so that a front which always hangs up is given up in the end."""
        logger.warning("Front lost", extra={"reason": str(error)})
        self._back_off()
        is_over = time.monotonic() - self._alone_since > self._options.orphan_grace_s
        return Ending.GRACE_OVER if is_over else Ending.FRONT_LOST

    def _meet(self, sock: socket.socket, decoder: Decoder) -> tuple[Welcome | None, int | None]:
        """Say Hello and return the Welcome with its descriptor; None if the stop flag came first. Raises: OSError, WireError, Hopeless."""
        self._greet(sock)
        answer, host_fd = self._receive_answer(sock, decoder)
        try:
            return self._check(answer), host_fd
        except WireError:
            if host_fd is not None:
                os.close(host_fd)
            raise

    def _greet(self, sock: socket.socket) -> None:
        held = self._held
        hello = Hello(
            pid=os.getpid(),
            device=self._options.device,
            driver=self._options.driver,
            secret=self._options.secret,
            capabilities=self._capabilities,
            boot_generation=self._boot_generation,
            opened=held.spec if held else None,
            models=tuple(held.models.values()) if held else (),
        )
        send_with_fd(sock, hello, self._host_fd)

    def _receive_answer(self, sock: socket.socket, decoder: Decoder) -> tuple[Message | None, int | None]:
        """Wait for the front's first message and the descriptor beside it. Raises: OSError, WireError."""
        host_fd: int | None = None
        while not self._stop.is_set:
            ready, _, _ = select.select([sock.fileno(), self._stop.fileno()], [], [], WELCOME_TIMEOUT_S)
            if not ready:
                raise TimeoutError(f"no answer to Hello within {WELCOME_TIMEOUT_S} s")
            if sock.fileno() not in ready:
                continue
            chunk, fd = receive_with_fd(sock)
            host_fd = fd if fd is not None else host_fd
            if not chunk:
                raise ConnectionResetError("end of stream")
            messages = decoder.feed(chunk)
            if messages:
                return messages[0], host_fd
        return None, host_fd

    def _check(self, answer: Message | None) -> Welcome | None:
        if answer is None:
            return None
        if isinstance(answer, Refused):
            raise Hopeless(f"The front refused this worker: {answer.detail}")
        welcome = expect(answer, Welcome)
        if welcome.boot_generation < self._boot_generation:  # invariant 3
            raise WireError(f"A front of generation {welcome.boot_generation}, after one of {self._boot_generation}.")
        return welcome

    def _prepare(self, sock: socket.socket, welcome: Welcome, host_fd: int | None) -> Held:
        """Return the driver, opened as the front wishes or kept as it is (invariant 2). Raises: DriverError, told to the front as well."""
        held = self._held
        if held is None or host_fd is not None or held.spec != welcome.open:
            try:
                held = self._open(welcome, host_fd)
            except DriverError as error:
                with contextlib.suppress(OSError):  # the front may be gone too; the error is raised either way
                    sock.sendall(encode(describe_error(0, error)))
                raise
        self._held = held
        self._boot_generation = welcome.boot_generation
        return held

    def _open(self, welcome: Welcome, host_fd: int | None) -> Held:
        if self._held is not None:
            self._held = None
            self._driver.close()
            self._driver = registry.create(self._options.driver)
        if host_fd is not None or welcome.open.host_bytes == 0:
            self._drop_host_fd()
            self._host_fd = host_fd
        # The driver gets a descriptor of its own: this one stays here, to be shown to the next front.
        self._driver.open(welcome.open, os.dup(self._host_fd) if self._host_fd is not None else None)
        self._capabilities = registry.probe(self._options.driver, self._driver)
        return Held(self._driver, welcome.open, self._driver.copied())

    def _await_side_thread(self, server: Server) -> None:
        """Wait for a load that is on its way (invariant 1)."""
        while server.side.thread.is_alive() and not self._stop.is_set:
            server.side.thread.join(LAST_RETRY_S)
        self._is_loading = server.side.thread.is_alive()

    def _drop_host_fd(self) -> None:
        if self._host_fd is not None:
            os.close(self._host_fd)
            self._host_fd = None
