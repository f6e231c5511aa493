"""A system-call server on a thread of its own, over a fake kernel: what a client in another process would meet."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from kerneld.calls import Principal, Role
from kerneld.config import SyscallsConfig
from kerneld.errors import Unauthenticated
from syscalls.server import Security, SyscallServer
from syscalls.table import build_table
from tests.syscalls.fake_kernel import FakeKernel

T = TypeVar("T")
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class FakeLogin:
    """What a login gives."""

    secret: str
    principal: Principal
    expires_at: float


@dataclass
class FakeIdentity:
    """Knows the tokens "admin", "operator", "user" and "viewer", and what it handed out itself."""

    logins: dict[str, Principal] = field(default_factory=dict)
    peers: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)
    refuses: bool = False

    def login(self, uid: int, gid: int, groups: Sequence[int]) -> FakeLogin:
        self.peers.append((uid, gid, tuple(groups)))
        if self.refuses:
            raise Unauthenticated(f"Nobody has the uid {uid}.")
        principal = Principal(f"uid:{uid}", "local", frozenset({Role.ADMIN}))
        secret = f"login-{id(self)}-{len(self.peers)}"
        self.logins[secret] = principal
        return FakeLogin(secret, principal, 4e9)

    def authenticate(self, bearer: str) -> Principal:
        if bearer in {role.value for role in Role}:
            return Principal(bearer, "lab", frozenset({Role(bearer)}), via="token", credential_id=bearer)
        if bearer not in self.logins:
            raise Unauthenticated("The token is not known; log in again.")
        return self.logins[bearer]

    def authenticate_certificate(self, common_name: str) -> Principal:
        return Principal(common_name, "lab", frozenset({Role.USER}), via="tls")


@dataclass
class FakeAudit:
    """Keeps what was written."""

    lines: list[tuple[str, str, str, str, dict[str, str]]] = field(default_factory=list)

    def append(self, principal: Principal, verb: str, object_id: str, outcome: str, facts: Mapping[str, str]) -> None:
        self.lines.append((principal.name, verb, object_id, outcome, dict(facts)))


class Rig:
    """A server that tests start, stop and restart; its kernel outlives it, its logins do not."""

    def __init__(self, config: SyscallsConfig, kernel: FakeKernel) -> None:
        self.config = config
        self.kernel = kernel
        self.audit = FakeAudit()
        self.identity = FakeIdentity()
        self.registry = CollectorRegistry()
        self.server: SyscallServer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """The socket."""
        return os.fspath(self.config.socket)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something on the server's loop."""

        async def do() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(TIMEOUT_S)

    def start(self) -> Rig:
        """Start a server whose logins nobody has yet."""
        self.identity = FakeIdentity()
        self.registry = CollectorRegistry()

        async def start() -> SyscallServer:
            security = Security(self.identity, self.identity.login, self.audit, boot_id="boot-1")
            server = SyscallServer(self.config, self.kernel, security, self.registry)
            await server.start()
            return server

        self.server = self.run(start)
        return self

    def stop(self, grace_s: float = 0.0) -> None:
        """Stop it."""
        server, self.server = self.server, None
        if server is not None:
            self.run(lambda: server.stop(grace_s))

    def close(self) -> None:
        """Stop it and the thread."""
        self.stop()

        async def settle() -> None:
            # A connection that was just accepted may begin another task while the first ones end.
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

        self.run(settle)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()


TABLE = {call.verb: call for call in build_table().values()}


def ask(channel: grpc.Channel, verb: str, request: Message | bytes, token: str = "user") -> Any:
    """Make a call as nobody but a test would: by name, with a token or without. A stream comes back as a list."""
    answer = method_of(channel, verb)(request, metadata=bearer(token), timeout=TIMEOUT_S)
    return list(answer) if TABLE[verb].is_stream else answer


def method_of(channel: grpc.Channel, verb: str) -> Any:
    """The bare method of a verb."""
    call = TABLE[verb]
    kind = channel.unary_stream if call.is_stream else channel.unary_unary
    return kind(call.path, request_serializer=_raw, response_deserializer=call.response.FromString)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def _raw(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


class CuttingProxy:
    """Stands before a daemon's two sockets and cuts gRPC connections after as many answered bytes as `cuts` says, one after the other."""

    def __init__(self, rig: Rig, path: Path, cuts: Sequence[int]) -> None:
        self.path = path
        self.num_cut = 0
        self._rig = rig
        self._cuts = list(cuts)
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[Any]] = set()

    def start(self) -> CuttingProxy:
        """Listen."""

        async def start() -> None:
            self._servers.append(await asyncio.start_unix_server(self._serve, self.path))
            self._servers.append(await asyncio.start_unix_server(self._serve_login, f"{self.path}.login"))

        self._rig.run(start)
        return self

    def stop(self) -> None:
        """Stop listening, and cut every connection that is left."""

        async def stop() -> None:
            for server in self._servers:
                server.close()
                await server.wait_closed()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

        self._rig.run(stop)

    async def _serve_login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, closing = await asyncio.open_unix_connection(f"{self._rig.path}.login")
            try:
                writer.write(await upstream.read())
                await writer.drain()
            finally:
                closing.close()
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            await self._relay(reader, writer, self._cuts.pop(0) if self._cuts else 1 << 40)
        finally:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int) -> None:
        back, forth = await asyncio.open_unix_connection(self._rig.path)
        up = asyncio.create_task(_pump(reader, forth, 1 << 40))
        try:
            if not await _pump(back, writer, budget):
                self.num_cut += 1
        finally:
            up.cancel()
            forth.transport.abort()
            await asyncio.gather(up, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: Any, budget: int) -> bool:
    """Copy at most `budget` bytes; says whether the source ended first."""
    try:
        while chunk := await source.read(min(4096, max(budget, 1))):
            sink.write(chunk[:budget])
            await sink.drain()
            budget -= len(chunk)
            if budget <= 0:
                return False
    except OSError:
        return True
    return True
