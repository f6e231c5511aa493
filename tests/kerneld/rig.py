"""A whole daemon in this process, on the fake driver: kernel verbs are called directly, and the worker does what a test says.

The driver's own oracle (`drivers.fake_model.continuation`) says what every request must generate, whatever happens on the way.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, cast

import tokenizers
from msgspec.structs import replace as replace_struct

from drivers.client import WorkerClient
from drivers.config import DeviceConfig, DriversConfig
from drivers.contract import Sampling
from drivers.fake_model import FakeModel, continuation
from kerneld.calls import (
    AllocArgs,
    Caller,
    ContextInfo,
    Delta,
    Durability,
    Finished,
    InferArgs,
    Limits,
    ModelInfo,
    Principal,
    RegisterArgs,
    Role,
    Score,
    ScoreArgs,
    Started,
    TokenInput,
)
from kerneld.config import Config, KerneldConfig
from kerneld.daemon import Daemon
from kerneld.kernel import Kernel
from kerneld.machine import Machine
from kerneld.state.tables import TenantRow
from memory.config import MemoryConfig
from tests.kerneld.local_worker import HELLO, LocalWorker, Script

P = ParamSpec("P")

GREEDY = Sampling(temperature=0.0)
PAGE_TOKENS = 4
GRANULE = 256  # a page of four tokens, 64 bytes each
SLAB = 4096  # sixteen pages
LANGUAGE = FakeModel(weights_bytes=2048)
ADMIN = Caller(Principal("root", "lab", frozenset({Role.ADMIN})))
ANN = Caller(Principal("ann", "lab/ann", frozenset({Role.USER})))
BOB = Caller(Principal("bob", "lab/bob", frozenset({Role.USER})))


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on an event loop of its own, and fail on whatever the loop was told to complain of."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
            await asyncio.wait_for(test(*args, **kwargs), timeout=60)

        asyncio.run(watched())
        assert not complaints, complaints

    return run


def with_id(caller: Caller, request_id: str, digest: bytes = b"d") -> Caller:
    """The caller's call with an idempotency key."""
    return replace(caller, request_id=request_id, digest=digest)


def prompt_of(seed: int, num_tokens: int) -> tuple[int, ...]:
    """Tokens that no other seed begins with."""
    return tuple(3 + (seed * 7919 + idx * 31) % 4000 for idx in range(num_tokens))


def oracle(tokens: Sequence[int], num_tokens: int, sampling: Sampling = GREEDY, language: FakeModel = LANGUAGE) -> list[int]:
    """What a context with these tokens goes on with."""
    return continuation(language, list(tokens), num_tokens, sampling)


@dataclass
class Output:
    """Everything that one stream said."""

    started: Started | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    offset: int = -1
    finished: Finished | None = None

    def take(self, event: Started | Delta | Finished) -> None:
        """Another event; deltas must follow one another without a gap or a repeat."""
        assert self.finished is None, "nothing follows the end"
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Finished):
            self.finished = event
        else:
            if self.offset < 0:
                self.offset = event.offset
            assert event.offset == self.offset + len(self.tokens), "no gap and no duplicate"
            self.tokens += event.tokens
            self.text += event.text
            self.logprobs += [item.logprob for item in event.logprobs]

    @property
    def reason(self) -> str:
        assert self.finished is not None, "the stream has ended"
        return self.finished.reason.value

    @property
    def detail(self) -> str:
        assert self.finished is not None, "the stream has ended"
        return self.finished.detail


@dataclass(frozen=True)
class Sizes:
    """How much memory there is, in slabs of sixteen pages (host frames are twice as large)."""

    device_slabs: int = 64
    host_slabs: int = 128
    disk_slabs: int = 0  # frames there are as large as on the host
    max_rows: int = 32
    max_step_tokens: int = 64


class Rig:
    """Starts, kills and stops daemons over one state directory."""

    def __init__(self, folder: Path, sizes: Sizes | None = None, *, clock: Callable[[], float] = time.time, **kernel: Any) -> None:
        self.folder = folder
        self.sizes = sizes or Sizes()
        self.scripts: list[Script] = []  # of the workers to come; after the last one they are healthy
        self.script = Script()
        self.options: dict[str, str] = {}
        self.memory: dict[str, Any] = {}  # other settings of the section `memory`
        self.is_worker_replaced = True
        self.devices: tuple[DeviceConfig, ...] = ()  # several of them, in place of one
        self.worker: LocalWorker | None = None  # of the device of which a worker came in last
        self.worker_of: dict[str, LocalWorker] = {}  # by device
        self.workers: list[LocalWorker] = []
        self.daemon: Daemon
        self._kernel_settings = {"drain_timeout_s": 0.0, "disk_reserve_bytes": 0} | kernel
        self._clock = clock
        self._num_states = 0
        self._readers: list[asyncio.Task[Output]] = []
        self.state = folder / "state"
        (folder / "models").mkdir(parents=True, exist_ok=True)
        self.add_model("m", LANGUAGE)

    # ------------------------------------------------------------------------------------------------------------------ life

    @property
    def kernel(self) -> Kernel:
        return self.daemon.kernel

    @property
    def machine(self) -> Machine:
        return self.daemon.machine

    def config(self) -> Config:
        sizes = self.sizes
        memory = MemoryConfig(
            device_bytes=sizes.device_slabs * SLAB,
            host_bytes=sizes.host_slabs * SLAB,
            page_file_bytes=sizes.disk_slabs * SLAB,
            page_tokens=PAGE_TOKENS,
            slab_bytes=SLAB,
            granule_bytes=GRANULE,
            **self.memory,
        )
        kernel = KerneldConfig(
            state_dir=self.state,
            runtime_dir=self.folder,
            worker_socket=self.folder / "w.sock",
            model_roots=(self.folder / "models",),
            start_workers=False,
            max_rows=sizes.max_rows,
            max_step_tokens=sizes.max_step_tokens,
            **self._kernel_settings,
        )
        return Config(memory, DriversConfig(use="fake", options=self.options, devices=self.devices), kernel)

    def add_model(self, name: str, language: FakeModel) -> Path:
        """Lay down a model directory."""
        folder = self.folder / "models" / name
        folder.mkdir(exist_ok=True)
        settings = {key: getattr(language, key) for key in language.__struct_fields__}
        (folder / "fake.json").write_text(json.dumps(settings))
        return folder

    def add_tokenizer(self, name: str = "m") -> None:
        """Give a model words: token 7 is "t7", and a space stands between two of them."""
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{idx}": idx for idx in range(LANGUAGE.vocab_size)}, unk_token="t0"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        inner.save(str(self.folder / "models" / name / "tokenizer.json"))

    async def start(self, orphans: Mapping[str, LocalWorker] | None = None, *, has_worker: bool = True) -> None:
        """Start a daemon on the state directory; `orphans` are workers that outlived the one before, by device."""
        self.daemon = Daemon(self.config(), clock=self._clock)
        await self.daemon.start()
        if "lab" not in self.machine.tenants:
            for path in ("lab", "lab/ann", "lab/bob"):
                row = TenantRow(path, 1, Limits(), 0.0, path.encode().ljust(32, b"."))
                await self.machine.store.add_tenant(row)
                self.machine.know_tenant(row)
        if has_worker:
            for device in self.machine.devices:
                self.bring_worker((orphans or {}).get(device.name), device.name)

    def bring_worker(self, orphan: LocalWorker | None = None, device: str = "") -> LocalWorker:
        """Let a worker come in, as the listener would; for the first device, unless it is named."""
        devices = self.machine.devices
        supervisor = (devices.get(device) if device else devices.first).supervisor
        hello = orphan.hello if orphan is not None else replace_struct(HELLO, device=supervisor.command.device)
        kept = orphan.host_fd if orphan is not None else None
        admission = supervisor.admit(hello, os.dup(kept) if kept is not None else None)
        is_kept = orphan is not None and admission.host_fd is None and orphan.spec == admission.open
        script = self.scripts.pop(0) if self.scripts else self.script
        worker = orphan if is_kept and orphan is not None else LocalWorker(admission.open, admission.host_fd, script)
        worker.script, worker.hello = script, hello
        worker.serve(admission.boot_generation)
        worker.on_gone = functools.partial(self._worker_gone, supervisor.command.device)
        self.worker = self.worker_of[supervisor.command.device] = worker
        self.workers.append(worker)
        supervisor.ready(cast(WorkerClient, worker))
        return worker

    def _worker_gone(self, device: str) -> None:
        if self.is_worker_replaced and self.machine.devices.get(device).supervisor.state.value != "stopped":
            asyncio.get_running_loop().call_soon(self.bring_worker, None, device)

    async def stop(self) -> None:
        """End in order; who still reads is cut off."""
        self.is_worker_replaced = False
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._readers.clear()
        for worker in self.worker_of.values():
            worker.release()
        await self.daemon.stop()

    async def die_and_return(self, *, keeps_worker: bool = False) -> None:
        """The daemon dies as by kill -9, and another one starts on what the disk holds at this moment."""
        self._num_states += 1
        left = self.folder / f"state{self._num_states}"
        shutil.copytree(self.state, left, ignore=lambda _folder, names: [name for name in names if name.endswith(".lock")])
        orphans = {name: worker.orphan() for name, worker in self.worker_of.items()} if keeps_worker else {}
        for name in orphans:
            self.machine.devices.get(name).supervisor.client = None
        await self.stop()
        self.is_worker_replaced = True
        self.state = left
        await self.start(orphans)

    # ------------------------------------------------------------------------------------------------------------------ verbs

    async def load(self, name: str = "m", device: str = "") -> ModelInfo:
        """Load a model of the rig's folder."""
        args = RegisterArgs(name, str(self.folder / "models" / name), device=device)
        told = [item async for item in self.kernel.load_model(ADMIN, args)]
        assert isinstance(told[-1], ModelInfo)
        return told[-1]

    async def alloc(self, caller: Caller = ANN, *, model: str = "m", durability: Durability = Durability.JOURNAL, **args: Any) -> str:
        """A new context's id."""
        info = await self.kernel.alloc(caller, AllocArgs(model, durability=durability, **args))
        return info.id

    async def infer(
        self,
        context_id: str,
        tokens: Sequence[int] = (),
        max_tokens: int = 8,
        *,
        caller: Caller = ANN,
        sampling: Sampling = GREEDY,
        **args: Any,
    ) -> Output:
        """Run one request to its end."""
        given = TokenInput(tuple(tokens)) if tokens else None
        call = InferArgs(context_id, given, max_tokens, sampling, True, ignore_eos=args.pop("ignore_eos", True), **args)
        return await read_all(self.kernel.infer(caller, call))

    async def attach(self, context_id: str, offset: int, caller: Caller = ANN) -> Output:
        """Follow a context to the end of its request."""
        return await read_all(self.kernel.attach(caller, context_id, offset))

    def begin(self, context_id: str, tokens: Sequence[int] = (), max_tokens: int = 8, **args: Any) -> asyncio.Task[Output]:
        """A request on its way."""
        task = asyncio.get_running_loop().create_task(self.infer(context_id, tokens, max_tokens, **args))
        self._readers.append(task)
        return task

    def begin_attach(self, context_id: str, offset: int) -> asyncio.Task[Output]:
        """A reader on its way."""
        task = asyncio.get_running_loop().create_task(self.attach(context_id, offset))
        self._readers.append(task)
        return task

    def begin_score(self, context_id: str, tokens: Sequence[int]) -> asyncio.Task[Score]:
        """A score on its way."""
        return asyncio.get_running_loop().create_task(self.kernel.score(ANN, ScoreArgs(context_id, TokenInput(tuple(tokens)))))

    def tokens(self, context_id: str) -> list[int]:
        """All tokens of a context."""
        context = self.machine.contexts.find(context_id)
        assert context is not None
        return context.tokens.tolist()

    def stat(self, context_id: str) -> ContextInfo:
        return self.kernel.stat(ADMIN, context_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop turn until something is so."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it never became so"
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let everything on its way arrive."""
        for _ in range(50):
            await asyncio.sleep(0)
        await self.until(lambda: all(device.dispatcher.is_idle for device in self.machine.devices))

    def check(self) -> None:
        """The books agree."""
        for device in self.machine.devices:
            device.pager.check_integrity()


async def read_all(events: AsyncIterator[Any]) -> Output:
    """Follow a stream to its end."""
    output = Output()
    async for event in events:
        output.take(event)
    return output


@asynccontextmanager
async def running(rig: Rig, *, loads: bool = True) -> AsyncIterator[Rig]:
    """A started rig, with its model loaded; stopped in the end, with its books in agreement."""
    await rig.start()
    try:
        if loads:
            await rig.load()
        yield rig
        if not rig.machine.is_draining:
            rig.check()
    finally:
        await rig.stop()
