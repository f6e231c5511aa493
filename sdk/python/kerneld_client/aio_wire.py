"""The connection of an asyncio client; `kerneld_client.wire` is the blocking one. What to send, when to try again and where a stream
stands is the same code in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, TypeVar

import grpc
import grpc.aio

from kerneld_client.call import Call
from kerneld_client.credential import Credential, Metadata
from kerneld_client.cursor import Cursor
from kerneld_client.errors import Cancelled, KerneldError, Unavailable
from kerneld_client.retry import RECONNECT_S, Retry
from kerneld_client.target import Target
from kerneld_client.values import Delta, Result
from kerneld_client.wire import HEALTH, SERVING, as_error

T = TypeVar("T")


class AioWire:
    """One channel and one credential, on one event loop."""

    def __init__(self, target: Target, timeout_s: float, reconnect_s: float = RECONNECT_S) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self.reconnect_s = reconnect_s
        self.credential = Credential(target)
        options = target.channel_options()
        if target.credentials is not None:
            self._channel = grpc.aio.secure_channel(target.address, target.credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(target.address, options)
        self._methods: dict[str, Any] = {}
        self._is_closed = False

    async def close(self) -> None:
        """Hang up."""
        self._is_closed = True
        await self._channel.close(None)

    async def invoke(self, call: Call[T], *, is_patient: bool = True) -> T:
        """Make a unary call. Raises: KerneldError; without patience at the first failure."""
        retry = Retry(call.timeout_s or self.timeout_s, self.credential.is_renewable)
        while True:
            metadata: Metadata = ()
            try:
                metadata = await self.credential.metadata_async()
                method = self._method(self._channel.unary_unary, call)
                return call.read(await method(call.request, timeout=retry.remaining_s(), metadata=metadata))
            except (grpc.RpcError, KerneldError) as failure:
                error = as_error(failure)
            if not is_patient:
                raise error
            await self.wait(retry, error, metadata)

    async def replay(self, call: Call[T], advance: Callable[[T], Call[T]] | None = None) -> AsyncIterator[T]:
        """Make a streaming call that is made again when the connection breaks: the same, or what follows the last item."""
        retry = Retry(self.reconnect_s, self.credential.is_renewable)
        while True:
            metadata: Metadata = ()
            events = None
            try:
                metadata = await self.credential.metadata_async()
                events = self.open(call, metadata)
                async for event in events:
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
            await self.wait(retry, error, metadata)

    def open(self, call: Call[Any], metadata: Metadata) -> Any:
        """Begin a streaming call; the answer has `read` and `cancel`."""
        return self._method(self._channel.unary_stream, call)(call.request, metadata=metadata)

    async def wait(self, retry: Retry, error: KerneldError, metadata: Metadata) -> None:
        """Sleep before the next attempt, or raise the error."""
        wait_s = retry.wait_s(error)
        if error.code is grpc.StatusCode.UNAUTHENTICATED:
            self.credential.forget(metadata)
        await asyncio.sleep(wait_s)

    async def is_serving(self, timeout_s: float) -> bool:
        """Whether the daemon says that it serves."""
        try:
            method = self._channel.unary_unary(HEALTH, request_serializer=bytes, response_deserializer=bytes)
            return bool(await method(b"", timeout=timeout_s) == SERVING)
        except grpc.RpcError:
            return False

    def _method(self, kind: Callable[..., Any], call: Call[Any]) -> Any:
        if self._is_closed:
            raise Cancelled("The client is closed.", reason="CLIENT_CLOSED")
        method = self._methods.get(call.path)
        if method is None:
            method = self._methods[call.path] = kind(
                call.path, request_serializer=type(call.request).SerializeToString, response_deserializer=call.answer.FromString
            )
        return method


class Stream:
    """Tokens as they come: iterate for deltas, or await `result()`. It comes back by itself when the connection breaks.

    Awaiting the stream itself waits until the request has begun, or fails as it did.
    """

    def __init__(self, wire: AioWire, cursor: Cursor, cancel: Callable[[], Awaitable[bool]]) -> None:
        self._wire = wire
        self._cursor = cursor
        self._cancel = cancel
        self._retry = Retry(wire.reconnect_s, wire.credential.is_renewable)
        self._metadata: Metadata = ()
        self._events: Any = None
        self._early: Delta | None = None
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

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __await__(self) -> Generator[Any, None, Stream]:
        return self._begin().__await__()

    async def _begin(self) -> Stream:
        while not (self._cursor.has_begun or self._is_closed):
            self._early = await self._try_step()
        return self

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        early, self._early = self._early, None
        if early is not None:
            return early
        while not self._cursor.is_done and not self._is_closed:
            delta = await self._try_step()
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def _try_step(self) -> Delta | None:
        try:
            return await self._step()
        except (grpc.RpcError, KerneldError) as failure:
            await self._reconnect(as_error(failure))
        except asyncio.CancelledError:
            if not self._is_closed:  # it is the reader's task that was cancelled, not the call by our own `close`
                raise
        return None

    async def _step(self) -> Delta | None:
        if self._events is None:
            self._metadata = await self._wire.credential.metadata_async()
            self._events = self._wire.open(self._cursor.call(), self._metadata)
        event = await self._events.read()
        if event is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise Unavailable("The daemon ended the stream before the request ended.")
        self._retry.renew()
        return self._cursor.take(event)

    async def _reconnect(self, error: KerneldError) -> None:
        self._events = None
        if self._is_closed:
            return
        self._retry.outlasts_drain = self._cursor.has_begun
        await self._wire.wait(self._retry, error, self._metadata)

    async def result(self) -> Result:
        """Read to the end and give all of it. Raises: KerneldError."""
        async for _ in self:
            pass
        return self._cursor.result()

    async def cancel(self) -> bool:
        """End the request in the daemon; the stream then finishes with reason "cancelled". Says whether it was still running."""
        return await self._cancel()

    def close(self) -> None:
        """Stop reading. The request goes on for the daemon's `detach_grace_s`; `attach` reads on."""
        self._is_closed = True
        if self._events is not None:
            self._events.cancel()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("A stream belongs to its connection and cannot be pickled; keep the context's id and an offset instead.")
