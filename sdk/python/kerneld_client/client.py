"""The blocking client: one method per system call.

    with kerneld_client.connect() as k:
        k.load("/srv/models/demo", name="demo")
        with k.alloc("demo") as ctx:
            for delta in ctx.infer("def fib(n):", max_tokens=64):
                print(delta.text, end="")

Everything is safe to use from several threads; a stream is read by one. `kerneld_client.aio` is the same with await.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

from kerneld_client import calls, device_calls, device_values, machine_calls, memory_values, values
from kerneld_client.context import Context
from kerneld_client.errors import Unavailable
from kerneld_client.options import AllocOptions
from kerneld_client.retry import RECONNECT_S
from kerneld_client.target import Tls, resolve
from kerneld_client.tenancy import Tenancy
from kerneld_client.wire import Wire

TIMEOUT_S = 60.0


def connect(
    target: str | os.PathLike[str] | None = None,
    *,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    tls: Tls | str | os.PathLike[str] | bool | None = None,
    timeout_s: float = TIMEOUT_S,
    reconnect_s: float = RECONNECT_S,
) -> Client:
    """Connect to a daemon; `kerneld_client.target` says what may be named and what is meant by default.

    `timeout_s` bounds each call, retries included; `reconnect_s` bounds how long a stream waits for a daemon that went away.
    Raises: Unavailable, if no daemon answers; Unauthenticated; InvalidArgument.
    """
    wire = Wire(resolve(target, token, token_file, tls), timeout_s, reconnect_s)
    try:
        wire.invoke(machine_calls.whoami(), is_patient=False)
    except BaseException:
        wire.close()
        raise
    return Client(wire)


class Client(Tenancy):
    """A connection to one daemon."""

    def __repr__(self) -> str:
        return f"Client({self._wire.target.address!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Contexts stay."""
        self._wire.close()

    # --------------------------------------------------------------------------------------------------------------------- models

    def load(  # noqa: PLR0913 (options, all by name)
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        quant: str | None = None,
        max_positions: int = 0,
        base: str = "",
        kv_quant: str | None = None,
        device: str = "",
        progress: Callable[[values.LoadProgress], object] | None = None,
    ) -> values.ModelInfo:
        """Load the model in a directory and return when it is ready. Without a name it gets the directory's.

        With the name of a registered model as `base`, the directory holds a LoRA adapter of it (PEFT). `quant` ("int8", "int4")
        quantizes the weights while they are loaded; `kv_quant` ("int8", "fp8") keeps keys and values so, where the driver can.
        Of several devices, `device` names the one on which to load it, also beside a copy elsewhere; else the daemon chooses.
        """
        how = machine_calls.Source(quant, max_positions, base, kv_quant)
        ready: values.ModelInfo | None = None
        for event in self._wire.replay(machine_calls.load(self._path(path), name, how, device)):
            if isinstance(event, values.ModelInfo):
                ready = event
            elif progress is not None:
                progress(event)
        if ready is None:
            raise Unavailable("The daemon ended the load before the model was ready.", reason="LOAD_CUT_SHORT")
        return ready

    def load_stream(  # noqa: PLR0913 (options, all by name)
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        quant: str | None = None,
        max_positions: int = 0,
        base: str = "",
        kv_quant: str | None = None,
        device: str = "",
    ) -> Iterator[values.LoadProgress | values.ModelInfo]:
        """The same, step by step; the last item is the ModelInfo."""
        how = machine_calls.Source(quant, max_positions, base, kv_quant)
        return self._wire.replay(machine_calls.load(self._path(path), name, how, device))

    def register(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        quant: str | None = None,
        max_positions: int = 0,
        base: str = "",
        kv_quant: str | None = None,
    ) -> values.ModelInfo:
        """Give a model directory a name, without loading it."""
        return self._wire.invoke(machine_calls.register(self._path(path), name, machine_calls.Source(quant, max_positions, base, kv_quant)))

    def unload(self, name: str, *, device: str = "") -> values.ModelInfo:
        """Take a model off the device."""
        return self._wire.invoke(machine_calls.unload(name, device))

    def pin(self, name: str) -> values.ModelInfo:
        """Keep a model on the device once it is there: it leaves for no other one."""
        return self._wire.invoke(machine_calls.pin(name, is_pinned=True))

    def unpin(self, name: str) -> values.ModelInfo:
        """Let a model leave for others again."""
        return self._wire.invoke(machine_calls.pin(name, is_pinned=False))

    def remove_model(self, name: str) -> None:
        """Forget a model's name."""
        self._wire.invoke(machine_calls.remove_model(name))

    def model(self, name: str) -> values.ModelInfo:
        """Show one model."""
        return self._wire.invoke(machine_calls.model(name))

    def models(self) -> list[values.ModelInfo]:
        """Show all models."""
        return self._all(machine_calls.models)

    # ------------------------------------------------------------------------------------------------------------------- contexts

    def alloc(self, model: str, **options: Unpack[AllocOptions]) -> Context:
        """Make a new, empty context."""
        return Context(self._wire, self._wire.invoke(calls.alloc(model, options)).id)

    def context(self, context_id: str) -> Context:
        """A handle to a context that exists; nothing is asked of the daemon yet."""
        return Context(self._wire, context_id)

    def contexts(self, *, all: bool = False, model: str = "", tenant: str = "") -> list[values.ContextInfo]:
        """Show one's own contexts; operators and admins may see `all`."""
        return self._all(lambda token: calls.contexts(token, everybody=all, model=model, tenant=tenant))

    # --------------------------------------------------------------------------------------------------------------------- images

    def restore(self, image: values.Image | str, *, labels: dict[str, str] | None = None) -> Context:
        """Make a context from an image. `context.restored` says how much of it needs no prefill."""
        restored = self._wire.invoke(calls.restore(image if isinstance(image, str) else image.id, labels))
        return Context(self._wire, restored.context.id, restored)

    def images(self, *, all: bool = False, context_id: str = "") -> list[values.Image]:
        """Show one's own images, or those of one context."""
        return self._all(lambda token: calls.images(token, everybody=all, context_id=context_id))

    def verify_image(self, image: values.Image | str) -> values.Verified:
        """Read an image again and say what does not hold."""
        return self._wire.invoke(calls.verify_image(image if isinstance(image, str) else image.id))

    def delete_image(self, image: values.Image | str) -> None:
        """Delete an image."""
        self._wire.invoke(calls.delete_image(image if isinstance(image, str) else image.id))

    # ---------------------------------------------------------------------------------------------------------------------- admin

    def whoami(self) -> values.Principal:
        """Who the daemon takes us for."""
        return self._wire.invoke(machine_calls.whoami())

    def is_serving(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the daemon says that it serves (grpc.health.v1)."""
        return self._wire.is_serving(timeout_s)

    def drain(self, *, timeout_s: float = 30.0) -> values.Drained:
        """Refuse new requests, wait for those that run, stop the daemon."""
        return self._wire.invoke(machine_calls.drain(timeout_s))

    def top(self) -> values.TopFrame:
        """The machine now."""
        last: values.TopFrame | None = None
        for frame in self.top_stream(count=1):
            last = frame
        if last is None:
            raise Unavailable("The daemon ended the stream before it had sent a frame.", reason="TOP_CUT_SHORT")
        return last

    def top_stream(self, *, interval_s: float = 1.0, count: int = 0) -> Iterator[values.TopFrame]:
        """The machine every `interval_s`, `count` times or until one stops reading."""
        return self._wire.replay(machine_calls.top(interval_s, count))

    def events(self, *, follow: bool = False, since: int = 0) -> Iterator[values.Event]:
        """What happened from sequence number `since` on; with follow, what happens too."""
        return self._wire.replay(machine_calls.events(follow, since), lambda event: machine_calls.events(follow, event.sequence + 1))

    def devices(self, name: str = "") -> list[device_values.Device]:
        """All devices, or the one of that name: what they are, and what runs the models on them."""
        return self._wire.invoke(device_calls.devices(name))

    def memory(self, *, num_decisions: int = 0) -> memory_values.Memory:
        """Who holds what, by tier; with `num_decisions`, the latest choices between bringing pages back and computing them again."""
        return self._wire.invoke(machine_calls.read_memory(num_decisions))

    def explain(self, *, context_id: str | None = None, model: str | None = None, request: str | None = None) -> memory_values.Explanation:
        """Why a request, a context or a model is where it is, why it waits, and the smallest change that would help."""
        return self._wire.invoke(machine_calls.explain(context_id, model, request))

    def requests(self, *, all: bool = False, tenant: str = "") -> list[memory_values.Outlook]:
        """The requests that wait or run, one's own or (operators) everybody's, in the order of their ids."""
        return self._all(lambda token: machine_calls.requests(token, all, tenant))

    def fsck(self) -> Iterator[memory_values.PartChecked]:
        """Check books, pages, images and journal of the running daemon, part by part."""
        return self._wire.replay(machine_calls.fsck())

    def _path(self, path: str | os.PathLike[str]) -> str:
        """A path that means the same to a daemon on this machine, which has a working directory of its own."""
        here = Path(path)
        return str(here.absolute()) if self._wire.target.is_local and not here.is_absolute() and here.exists() else os.fspath(path)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("A client is a live connection and cannot be pickled; connect again in the other process.")
