"""The connection of a blocking client: calls that are repeated where they may be, streams that come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from kerneld_client.call import Call
from kerneld_client.credential import Credential, Metadata
from kerneld_client.cursor import Cursor
from kerneld_client.errors import Cancelled, KerneldError, Unavailable, from_rpc_error
from kerneld_client.retry import RECONNECT_S, Retry
from kerneld_client.target import Target
from kerneld_client.values import Delta, Result

T = TypeVar("T")

HEALTH = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


class Wire:
    """One channel and one credential. Safe to use from several threads."""

    def __init__(self, target: Target, timeout_s: float, reconnect_s: float = RECONNECT_S) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.reconnect_s = reconnect_s
        self.credential = Credential(target)
        options = target.channel_options()
        if target.credentials is not None:
            self._channel = grpc.secure_channel(target.address, target.credentials, options)
        else:
            self._channel = grpc.insecure_channel(target.address, options)
        self._methods: dict[str, Any] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        self._channel.close()

    def invoke(self, call: Call[T], *, is_patient: bool = True) -> T:
        """Make a unary call. Raises: KerneldError; without patience at the first failure."""
        retry = Retry(call.timeout_s or self.timeout_s, self.credential.is_renewable)
        while True:
            metadata: Metadata = ()
            try:
                metadata = self.credential.metadata()
                answer = self._method(self._channel.unary_unary, call)(call.request, timeout=retry.remaining_s(), metadata=metadata)
                return call.read(answer)
            except (grpc.RpcError, KerneldError) as failure:
                error = as_error(failure)
            if not is_patient:
                raise error
            self.wait(retry, error, metadata)

    def replay(self, call: Call[T], advance: Callable[[T], Call[T]] | None = None) -> Iterator[T]:
        """Make a streaming call that is made again when the connection breaks: the same, or what follows the last item."""
        retry = Retry(self.reconnect_s, self.credential.is_renewable)
        while True:
            metadata: Metadata = ()
            events = None
            try:
                metadata = self.credential.metadata()
                events = self.open(call, metadata)
                for event in events:
                    retry.renew()
                    item = call.read(event)
                    yield item
                    call = advance(item) if advance is not None else call
                return
            except (grpc.RpcError, KerneldError) as failure:
                error = as_error(failure)
            finally:
                if events is not None:
                    events.cancel()
            self.wait(retry, error, metadata)

    def open(self, call: Call[Any], metadata: Metadata) -> Any:
        """Begin a streaming call; the answer is an iterator with `cancel`."""
        return self._method(self._channel.unary_stream, call)(call.request, metadata=metadata)

    def wait(self, retry: Retry, error: KerneldError, metadata: Metadata) -> None:
        """Sleep before the next attempt, or raise the error."""
        wait_s = retry.wait_s(error)
        if error.code is grpc.StatusCode.UNAUTHENTICATED:
            self.credential.forget(metadata)
        time.sleep(wait_s)

    def is_serving(self, timeout_s: float) -> bool:
        """Whether the daemon says that it serves."""
        try:
            method = self._channel.unary_unary(HEALTH, request_serializer=bytes, response_deserializer=bytes)
            return bool(method(b"", timeout=timeout_s) == SERVING)
        except grpc.RpcError:
            return False

    def _method(self, kind: Callable[..., Any], call: Call[Any]) -> Any:
        if self._is_closed:
            raise Cancelled("The client is closed.", reason="CLIENT_CLOSED")
        method = self._methods.get(call.path)
        if method is None:
            with self._lock:
                method = self._methods[call.path] = kind(
                    call.path, request_serializer=type(call.request).SerializeToString, response_deserializer=call.answer.FromString
                )
        return method


def as_error(failure: grpc.RpcError | KerneldError) -> KerneldError:
    """The typed error of either."""
    return failure if isinstance(failure, KerneldError) else from_rpc_error(failure)


class Stream:
    """Tokens as they come: iterate for deltas, or take `result()`. It comes back by itself when the connection breaks.

    One thread reads it; `cancel` and `close` may be called from any.
    """

    def __init__(self, wire: Wire, cursor: Cursor, cancel: Callable[[], bool]) -> None:
        self._wire = wire
        self._cursor = cursor
        self._cancel = cancel
        self._retry = Retry(wire.reconnect_s, wire.credential.is_renewable)
        self._metadata: Metadata = ()
        self._events: Any = None
        self._is_closed = False
        ready = wire.credential.ready()
        if ready is not None:  # begin now, not when somebody looks: two streams that were asked for are to run together
            self._metadata = ready
            self._events = wire.open(cursor.call(), ready)

    @property
    def offset(self) -> int | None:
        """The position in the context of the next token; None until the request has begun."""
        return self._cursor.next_offset

    @property
    def request(self) -> str:
        """The id of the request; empty until it has begun."""
        return self._cursor.request

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Delta:
        while not self._cursor.is_done and not self._is_closed:
            try:
                delta = self._step()
            except (grpc.RpcError, KerneldError) as failure:
                self._reconnect(as_error(failure))
                continue
            if delta is not None:
                return delta
        raise StopIteration

    def _step(self) -> Delta | None:
        if self._events is None:
            self._metadata = self._wire.credential.metadata()
            self._events = self._wire.open(self._cursor.call(), self._metadata)
        event = next(self._events, None)
        if event is None:
            raise Unavailable("The daemon ended the stream before the request ended.")
        self._retry.renew()
        return self._cursor.take(event)

    def _reconnect(self, error: KerneldError) -> None:
        self._events = None
        if self._is_closed:
            return
        self._retry.outlasts_drain = self._cursor.has_begun
        self._wire.wait(self._retry, error, self._metadata)

    def result(self) -> Result:
        """Read to the end and give all of it. Raises: KerneldError."""
        for _ in self:
            pass
        return self._cursor.result()

    def cancel(self) -> bool:
        """End the request in the daemon; the stream then finishes with reason "cancelled". Says whether it was still running."""
        return self._cancel()

    def close(self) -> None:
        """Stop reading. The request goes on for the daemon's `detach_grace_s`; `attach` reads on."""
        self._is_closed = True
        events = self._events
        if events is not None:
            events.cancel()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("A stream belongs to its connection and cannot be pickled; keep the context's id and an offset instead.")
