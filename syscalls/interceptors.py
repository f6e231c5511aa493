"""The gate: the one interceptor that every call passes. Deny by default.

    metadata -> who is it            Unauthenticated       kerneld.security.identity
             -> may they             PermissionDenied      kerneld.security.acl, permission from syscalls.table
    bytes    -> is it well formed    InvalidArgument       syscalls.bounds
             -> handler(request, caller)                   syscalls.context, .infer, .model, .checkpoint, .admin
    answer or error                                        syscalls.status

Rules
1. A call is served only if its method has a row in the syscall table and a handler. The gate answers from its own rows and asks the server
   for nothing else but health (open to everybody) and reflection (open on the local socket; over TCP to whoever is known).
2. Nothing of a message is looked at before its sender is known and allowed.
3. A mutating unary call that began runs to its end and is audited, even when its caller leaves; `settle` waits for such calls.
4. When a reader leaves a stream, the kernel's iterator is closed at once; the kernel decides what becomes of the work.
5. An audit line names principal, verb, object and outcome; never what a message holds.

Deadlines are the transport's: when one passes, the task of the call is cancelled, and rules 3 and 4 say what follows.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from prometheus_client import CollectorRegistry, Counter

from kerneld.calls import Caller, Principal
from kerneld.errors import InvalidArgument, OutOfRange, PermissionDenied, Unauthenticated
from kerneld.security.acl import check_permission
from syscalls.bounds import compile_bounds
from syscalls.status import code_of, internal, to_status, trailers, translate
from syscalls.streams import closing
from syscalls.table import Syscall

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
UnaryHandler = Callable[[Any, Caller], Awaitable[Message]]
StreamHandler = Callable[[Any, Caller], AsyncIterator[Message]]
Handler = UnaryHandler | StreamHandler

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."
CODES = {code.value[0]: code for code in grpc.StatusCode}
DIGEST_BYTES = 16


class ReaderLeft(Exception):
    """The reader of a stream went away while an answer was on its way; no error of anybody."""


class Identity(Protocol):
    """Who stands behind a credential. Raises: Unauthenticated."""

    def authenticate(self, bearer: str, /) -> Principal: ...
    def authenticate_certificate(self, common_name: str, /) -> Principal: ...


class Audit(Protocol):
    """Where mutating calls are written down."""

    def append(self, principal: Principal, verb: str, object_id: str, outcome: str, facts: Mapping[str, str], /) -> None: ...


class CallCounters:
    """Calls by verb and status code, and bugs, in the daemon's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter("kerneld_syscalls", "System calls that were answered.", ("verb", "code"), registry=registry)
        self._bugs = Counter("kerneld_syscall_bugs", "System calls that ended in INTERNAL.", registry=registry)
        self._by_verb: dict[tuple[str, grpc.StatusCode], Counter] = {}

    def count(self, verb: str, code: grpc.StatusCode) -> None:
        """One call was answered. The child is kept, because looking it up by labels takes longer than counting."""
        child = self._by_verb.get((verb, code))
        if child is None:
            child = self._by_verb[verb, code] = self._calls.labels(verb, code.name)
        child.inc()

    def count_bug(self) -> None:
        """One call ended in an error that nobody foresaw."""
        self._bugs.inc()


@dataclass(frozen=True, slots=True)
class Door:
    """One verb, ready to be served."""

    syscall: Syscall
    handler: Any  # UnaryHandler or StreamHandler, as syscall.is_stream says
    work: Callable[[Door, Message, Caller, Context], Awaitable[Message | None]]
    check: Callable[[Message], None]
    has_request_id: bool


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Serves the rows of the syscall table, each behind identity, permission and bounds."""

    def __init__(self, table: Mapping[str, Syscall], handlers: Mapping[str, Handler], guards: Guards) -> None:
        self._guards = guards
        self._running: set[asyncio.Task[Message]] = set()
        self._methods = {path: self._method(syscall, handlers[path]) for path, syscall in table.items()}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of a method, or None, which the server answers with UNIMPLEMENTED. Rule 1."""
        path = handler_call_details.method
        method = self._methods.get(path)
        if method is not None:
            return method
        if path.startswith(HEALTH):
            return await continuation(handler_call_details)
        if path.startswith(REFLECTION):
            found = await continuation(handler_call_details)
            return None if found is None else self._guarded_reflection(found)
        return None

    async def settle(self) -> None:
        """Wait for mutating calls whose callers left."""
        while self._running:
            await asyncio.wait(self._running)

    def _method(self, syscall: Syscall, handler: Handler) -> Any:
        has_request_id = "request_id" in syscall.request.DESCRIPTOR.fields_by_name
        work = self._stream if syscall.is_stream else self._run_to_end if syscall.mutates else self._read
        serve = partial(self._serve, Door(syscall, handler, work, compile_bounds(syscall.request), has_request_id))
        make = grpc.unary_stream_rpc_method_handler if syscall.is_stream else grpc.unary_unary_rpc_method_handler
        return make(serve, response_serializer=syscall.response.SerializeToString)

    # ------------------------------------------------------------------------------------------------------------------ one call

    async def _serve(self, door: Door, raw: bytes, context: Context) -> Message | None:
        try:
            request, caller = self._admit(door, raw, context)
            answer = await door.work(door, request, caller, context)
        except Exception as error:  # noqa: BLE001 - a loop top: log, count, fail this one call
            await self._refuse(door, error, context)
            return None
        self._guards.counters.count(door.syscall.verb, grpc.StatusCode.OK)
        return answer

    async def _read(self, door: Door, request: Message, caller: Caller, _: Context) -> Message:
        answer: Message = await door.handler(request, caller)
        return answer

    async def _stream(self, door: Door, request: Message, caller: Caller, context: Context) -> None:
        is_audited = not door.syscall.mutates
        try:
            async with closing(door.handler(request, caller)) as answers:  # rule 4
                async for answer in answers:
                    if not is_audited:
                        is_audited = True
                        self._audit(door, request, caller, "OK")
                    await _send(answer, context)
        except Exception as error:
            if not is_audited:
                self._audit(door, request, caller, outcome_of(error))
            raise

    async def _run_to_end(self, door: Door, request: Message, caller: Caller, _: Context) -> Message:
        """Rule 3."""
        task: asyncio.Task[Message] = asyncio.ensure_future(door.handler(request, caller))
        self._running.add(task)
        task.add_done_callback(partial(self._ended, door, request, caller))
        return await asyncio.shield(task)

    def _ended(self, door: Door, request: Message, caller: Caller, task: asyncio.Task[Message]) -> None:
        self._running.discard(task)
        if task.cancelled():
            self._audit(door, request, caller, "CANCELLED")
        elif (error := task.exception()) is not None:
            self._audit(door, request, caller, outcome_of(error))
        else:
            self._audit(door, request, caller, "OK", task.result())

    # ---------------------------------------------------------------------------------------------------------- who, may they, what

    def _admit(self, door: Door, raw: bytes, context: Context) -> tuple[Message, Caller]:
        """Rule 2: identity, permission, then the message."""
        syscall = door.syscall
        principal = self._identify(context)
        try:
            check_permission(principal, syscall.permission)
        except PermissionDenied:
            if syscall.mutates:
                self._guards.audit.append(principal, syscall.verb, "", PermissionDenied.reason, {})
            raise
        if len(raw) > self._guards.max_message_bytes:
            raise OutOfRange(f"The message has {len(raw)} bytes; at most {self._guards.max_message_bytes} are accepted.")
        try:
            request = syscall.request.FromString(raw)
        except DecodeError as error:
            raise InvalidArgument("message", f"is not a well-formed {syscall.request.DESCRIPTOR.name}.") from error
        door.check(request)
        request_id: str = request.request_id if door.has_request_id else ""  # type: ignore[attr-defined]
        return request, Caller(principal, request_id, digest_of(syscall, request) if request_id else b"")

    def _identify(self, context: Context) -> Principal:
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                scheme, _, secret = str(value).partition(" ")
                if scheme.lower() != "bearer" or not secret:
                    raise Unauthenticated("The authorization metadata must be: Bearer TOKEN.")
                return self._guards.identity.authenticate(secret)
        for common_name in context.auth_context().get("x509_common_name", ()):
            return self._guards.identity.authenticate_certificate(common_name.decode("utf-8", "replace"))
        raise Unauthenticated("The call carries no token: log in on the local socket, or send an API token.")

    def _guarded_reflection(self, found: Any) -> Any:
        async def answer(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            if not context.peer().startswith("unix:"):
                try:
                    self._identify(context)
                except Unauthenticated as error:
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
            async for item in found.stream_stream(requests, context):
                yield item

        return grpc.stream_stream_rpc_method_handler(answer, found.request_deserializer, found.response_serializer)

    # ---------------------------------------------------------------------------------------------------------------------- outcome

    async def _refuse(self, door: Door, error: Exception, context: Context) -> None:
        """End the call with the status of an error; a caller who has left gets none."""
        if context.done() or isinstance(error, ReaderLeft):
            self._guards.counters.count(door.syscall.verb, grpc.StatusCode.CANCELLED)
            return
        status = self._status_of(door, error)
        code = CODES[status.code]
        self._guards.counters.count(door.syscall.verb, code)
        await context.abort(code, status.message, trailers(status))

    def _status_of(self, door: Door, error: Exception) -> Status:
        known = translate(error)
        if known is not None and code_of(known) is not grpc.StatusCode.INTERNAL:
            return to_status(known)
        error_id = secrets.token_hex(8)
        self._guards.counters.count_bug()
        logger.error("a system call failed", exc_info=error, extra={"verb": door.syscall.verb, "error_id": error_id})
        return internal(error_id)

    def _audit(self, door: Door, request: Message, caller: Caller, outcome: str, answer: Message | None = None) -> None:
        """Rule 5."""
        syscall = door.syscall
        object_id = str(getattr(request, syscall.object_field)) if syscall.object_field else ""
        made = getattr(getattr(answer, "context", answer), "id", "")  # of a new context, image or token
        facts = {"made": made} if made and made != object_id else {}
        self._guards.audit.append(caller.principal, syscall.verb, object_id, outcome, facts)


@dataclass(frozen=True, slots=True)
class Guards:
    """Whom the gate asks, and where it writes."""

    identity: Identity
    audit: Audit
    counters: CallCounters
    max_message_bytes: int


async def _send(answer: Message, context: Context) -> None:
    """Write one answer of a stream. Raises: ReaderLeft; the call is seen to have ended only after that."""
    try:
        await context.write(answer)
    except grpc.aio.InternalError as error:
        raise ReaderLeft from error


def outcome_of(error: BaseException) -> str:
    """The word that the audit log has for an error: its reason."""
    known = translate(error) if isinstance(error, Exception) else None
    return known.reason if known is not None else "INTERNAL"


def digest_of(syscall: Syscall, request: Message) -> bytes:
    """What tells one call from another under the same request_id: the method and all fields, in a fixed order."""
    content = request.SerializeToString(deterministic=True)
    return hashlib.blake2b(syscall.path.encode() + b"\0" + content, digest_size=DIGEST_BYTES).digest()
