"""The gRPC server: sockets, TLS, health, reflection, graceful stop.

    start     claim the unix socket -> bind -> login socket -> serve -> health follows the kernel's readiness
    stop      health says no -> no new calls, those that run get `grace_s` -> mutating calls run to their end -> socket files go

Health (grpc.health.v1) is kept for "" and for each service, so that a load balancer may ask for one. grpcio cannot serve a socket that it
did not bind itself, so there is no socket activation; the path is bound anew and is ours alone (`syscalls.sockets`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from kerneld.config import SyscallsConfig, is_loopback, split_address
from syscalls.admin import Admin
from syscalls.checkpoint import Checkpoints
from syscalls.context import Contexts
from syscalls.infer import Inference
from syscalls.interceptors import Audit, CallCounters, Gate, Guards, Handler, Identity
from syscalls.login import Login, LoginServer
from syscalls.model import Models
from syscalls.sockets import BoundPath, ListenError, claim_path
from syscalls.table import build_table, services
from syscalls.verbs import Readiness, Verbs

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 0.5
MAX_METADATA_BYTES = 16 << 10
MAX_CALLS = 10_000
MAX_STREAMS_PER_CONNECTION = 4096


@dataclass(frozen=True, slots=True)
class Security:
    """Whom the server asks about callers, and where it writes what they changed."""

    identity: Identity
    login: Login
    audit: Audit
    boot_id: str


class SyscallServer:
    """The ways in: gRPC on a unix socket, with its login socket beside it, and on TCP where configured."""

    def __init__(self, config: SyscallsConfig, kernel: Verbs, security: Security, registry: CollectorRegistry) -> None:
        self._config = config
        self._readiness: Readiness = kernel
        self._login = LoginServer(config.socket, security.login, security.boot_id)
        counters = CallCounters(registry)
        guards = Guards(security.identity, security.audit, counters, config.max_message_bytes)
        self._gate = Gate(build_table(), handlers_of(kernel), guards)
        self._health = health_aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._bound: BoundPath | None = None
        self._follower: asyncio.Task[None] | None = None
        self.tcp_port = 0  # that it listens on, once started; 0 where no TCP is configured

    async def start(self) -> None:
        """Listen on everything that is configured. Raises: ListenError; nothing listens then."""
        try:
            await self._start()
        except BaseException:
            await self.stop(0.0)
            raise

    async def _start(self) -> None:
        claim_path(self._config.socket)
        server = self._server = grpc.aio.server(
            interceptors=[self._gate], options=server_options(self._config.max_message_bytes), maximum_concurrent_rpcs=MAX_CALLS
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.full_name for service in services()]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        _bind(f"unix:{self._config.socket}", server.add_insecure_port)
        self._bound = BoundPath(self._config.socket)
        if self._config.tcp:
            self.tcp_port = listen_tcp(server, self._config)
        await self.follow_readiness()
        await server.start()
        await self._login.start()
        self._follower = asyncio.create_task(self._follow())

    async def stop(self, grace_s: float) -> None:
        """Stop serving; calls that run get `grace_s` to end. Leaves no socket file. Safe to call twice."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
            self._follower = None
        await self._login.stop()
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace_s)
            await self._gate.settle()
            self._server = None
        if self._bound is not None:
            self._bound.release()
            self._bound = None

    async def follow_readiness(self) -> None:
        """Make health say what the kernel says."""
        status = health_pb2.HealthCheckResponse
        word = status.SERVING if self._readiness.is_ready() else status.NOT_SERVING
        for name in ("", *(service.full_name for service in services())):
            await self._health.set(name, word)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            await self.follow_readiness()


def handlers_of(kernel: Verbs) -> Mapping[str, Handler]:
    """The handler of each method, by its name on the wire."""
    servicers: dict[str, Any] = {
        "Contexts": Contexts(kernel),
        "Inference": Inference(kernel),
        "Models": Models(kernel),
        "Checkpoints": Checkpoints(kernel),
        "Admin": Admin(kernel),
    }
    return {path: getattr(servicers[call.service.rpartition(".")[2]], call.verb) for path, call in build_table().items()}


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Settings of the transport."""
    return [
        # The gate refuses what is over the limit with a sentence; the transport cuts off what is far over it.
        ("grpc.max_receive_message_length", 2 * max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        # Two daemons on one port would share its calls between them.
        ("grpc.so_reuseport", 0),
        # A peer that vanished is noticed within 40 s; clients may ping every 10 s, also while no call runs.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 5),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def listen_tcp(server: grpc.aio.Server, config: SyscallsConfig) -> int:
    """Add the TCP address to a server and return the port. Raises: ListenError, as for an address beyond loopback without TLS."""
    host, port = split_address(config.tcp)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if config.tls_cert is not None and config.tls_key is not None:
        credentials = tls_credentials(config.tls_cert, config.tls_key, config.tls_client_ca)
        return _bind(address, lambda target: server.add_secure_port(target, credentials))
    if not is_loopback(host):
        raise ListenError(f"syscalls.tcp = {config.tcp!r} can be reached from other machines: set syscalls.tls_cert and syscalls.tls_key.")
    return _bind(address, server.add_insecure_port)


def tls_credentials(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Server credentials; with a client CA, every client has to show a certificate of it. Raises: ListenError."""
    chain = (_read(key, "syscalls.tls_key"), _read(cert, "syscalls.tls_cert"))
    if client_ca is None:
        return grpc.ssl_server_credentials([chain])
    return grpc.ssl_server_credentials([chain], _read(client_ca, "syscalls.tls_client_ca"), require_client_auth=True)


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListenError(f"{key}: cannot read {path}: {error.strerror}.") from error


def _bind(address: str, add_port: Callable[[str], int]) -> int:
    try:
        port = add_port(address)
    except RuntimeError as error:
        raise ListenError(f"Cannot listen on {address}: {error}.") from error
    if port == 0:
        raise ListenError(f"Cannot listen on {address}: the address is taken or not of this machine.")
    return port
