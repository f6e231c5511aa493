"""/metrics, /healthz and /readyz over a small HTTP server, on loopback.

It knows GET and HEAD of three paths, closes every connection after one answer, and reads at most `MAX_HEAD_BYTES` within `TIMEOUT_S`. It
runs on the event loop because the gauges that it shows are the kernel's state, which no other thread may look at.

    /healthz   200 while the process answers at all
    /readyz    200 when system calls can be served; else 503 and why
    /metrics   Prometheus text format
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from kerneld.config import split_address
from syscalls.sockets import ListenError
from syscalls.verbs import Readiness

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8192
TIMEOUT_S = 5.0
MAX_CONNECTIONS = 64
PLAIN = "text/plain; charset=utf-8"


class MetricsServer:
    """Answers Prometheus and health probes."""

    def __init__(self, address: str, registry: CollectorRegistry, readiness: Readiness) -> None:
        self._host, self._port = split_address(address)
        self._registry = registry
        self._readiness = readiness
        self._num_connections = 0
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; chosen by the system where 0 was asked for."""
        return self._port

    async def start(self) -> None:
        """Begin to listen. Raises: ListenError."""
        try:
            self._server = await asyncio.start_server(self._answer, self._host, self._port, limit=MAX_HEAD_BYTES)
        except OSError as error:
            raise ListenError(f"Cannot listen on {self._host}:{self._port} for syscalls.metrics: {error.strerror}.") from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._num_connections <= MAX_CONNECTIONS:
                    writer.write(self._response(await _request_line(reader)))
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.debug("a metrics connection broke", extra={"why": str(error)})
            writer.transport.abort()
        finally:
            self._num_connections -= 1

    def _response(self, line: list[str]) -> bytes:
        if len(line) != 3 or not line[2].startswith("HTTP/1."):
            return _http(HTTPStatus.BAD_REQUEST, "This is not an HTTP/1 request.\n")
        method, target, _ = line
        if method not in ("GET", "HEAD"):
            return _http(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are answered.\n")
        response = self._page(target.partition("?")[0])
        return response if method == "GET" else response[: response.index(b"\r\n\r\n") + 4]

    def _page(self, path: str) -> bytes:
        if path == "/metrics":
            return _http(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST)
        if path == "/healthz":
            return _http(HTTPStatus.OK, "alive\n")
        if path == "/readyz":
            if self._readiness.is_ready():
                return _http(HTTPStatus.OK, "ready\n")
            return _http(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._readiness.readiness_problem()}\n")
        return _http(HTTPStatus.NOT_FOUND, "There are /metrics, /healthz and /readyz.\n")


async def _request_line(reader: asyncio.StreamReader) -> list[str]:
    """The words of the first line, once the whole head is read; none, if the head is too large."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return []
    return head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")


def _http(status: HTTPStatus, body: str | bytes, content_type: str = PLAIN) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n"
    return head.encode("latin-1") + b"Connection: close\r\n\r\n" + content
