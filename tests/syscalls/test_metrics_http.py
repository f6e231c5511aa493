"""/metrics, /healthz and /readyz."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from syscalls.metrics_http import MAX_HEAD_BYTES, MetricsServer
from syscalls.sockets import ListenError
from tests.syscalls.fake_kernel import FakeKernel


def served(kernel: FakeKernel, talk: Callable[[int], Any]) -> Any:
    """Run a metrics server, and what a caller does to it on a thread."""

    async def main() -> Any:
        registry = CollectorRegistry()
        Counter("things", "Things.", registry=registry).inc()
        server = MetricsServer("127.0.0.1:0", registry, kernel)
        await server.start()
        try:
            return await asyncio.to_thread(talk, server.port)
        finally:
            await server.stop()

    return asyncio.run(main())


def send(port: int, request: bytes) -> bytes:
    """Say something and take what comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            return stream.read()


def get(path: str, kernel: FakeKernel | None = None, method: str = "GET") -> bytes:
    """One request."""
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answer: bytes = served(kernel or FakeKernel(), lambda port: send(port, request))
    return answer


def test_metrics_are_in_the_prometheus_format() -> None:
    answer = get("/metrics")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=")
    assert b"\nthings_total 1.0\n" in answer


def test_head_gives_the_length_and_no_body() -> None:
    answer = get("/metrics", method="HEAD")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: " in answer


def test_ready_follows_the_kernel_and_says_what_is_missing() -> None:
    assert get("/readyz").startswith(b"HTTP/1.1 200")
    unready = get("/readyz", FakeKernel(ready=False))
    assert unready.startswith(b"HTTP/1.1 503")
    assert unready.endswith(b"no worker\n")


def test_alive_does_not_depend_on_ready() -> None:
    assert get("/healthz", FakeKernel(ready=False)).startswith(b"HTTP/1.1 200")


def test_a_query_does_not_change_the_page() -> None:
    assert get("/healthz?verbose=1").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"\x16\x03\x01\x02\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD_BYTES) + b"\r\n\r\n", b"400"),
    ],
)
def test_garbage_is_answered_and_hurts_nobody(request_bytes: bytes, status: bytes) -> None:
    def talk(port: int) -> tuple[bytes, bytes]:
        return send(port, request_bytes), send(port, b"GET /healthz HTTP/1.0\r\n\r\n")

    first, second = served(FakeKernel(), talk)
    assert first.split(b" ")[1] == status
    assert second.startswith(b"HTTP/1.1 200")


def test_a_caller_who_hangs_up_hurts_nobody() -> None:
    def talk(port: int) -> bytes:
        socket.create_connection(("127.0.0.1", port)).close()
        return send(port, b"GET /healthz HTTP/1.0\r\n\r\n")

    assert served(FakeKernel(), talk).startswith(b"HTTP/1.1 200")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = MetricsServer(f"127.0.0.1:{taken.getsockname()[1]}", CollectorRegistry(), FakeKernel())
        with pytest.raises(ListenError, match=r"syscalls\.metrics"):
            asyncio.run(server.start())
