"""Any sequence of verbs, deaths and restarts leaves every context with the tokens that its history and the oracle say."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from drivers.config import DeviceConfig
from kerneld.calls import CheckpointArgs, ContextState, Durability, ForkArgs
from kerneld.disk.pagefile import SUPERBLOCK_BYTES
from kerneld.errors import DiskFull
from tests.kerneld.local_worker import Script
from tests.kerneld.rig import ANN, SLAB, Output, Rig, Sizes, oracle, prompt_of

T = TypeVar("T")


class DaemonLife(RuleBasedStateMachine):
    """A daemon with little memory, beside a model of it: the tokens of every context."""

    contexts = Bundle("contexts")
    images = Bundle("images")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kerneld-life-"))
        self.loop = asyncio.new_event_loop()
        self.tokens: dict[str, list[int]] = {}
        self.asleep: set[str] = set()
        self.taken: dict[str, list[int]] = {}
        self.running: dict[str, tuple[asyncio.Task[Output], list[int], int]] = {}
        self.rig: Rig

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    @initialize(lead=st.integers(0, 3), below=st.sampled_from([(0, 0), (2, 0), (32, 0), (2, 1), (3, 32), (3, 32), (32, 32)]))
    def begin(self, lead: int, below: tuple[int, int]) -> None:
        host_slabs, disk_slabs = below
        self.rig = Rig(self.folder, Sizes(5, host_slabs, disk_slabs, max_rows=3, max_step_tokens=24))
        self.rig.script = Script(lead=lead)
        self.do(self.rig.start())
        self.do(self.rig.load())

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.do(self.finish_all())
            self.do(self.rig.stop())
        self.loop.close()
        shutil.rmtree(self.folder)

    async def finish_all(self) -> None:
        """Every request that runs ends as the oracle says."""
        for context, (task, past, wanted) in list(self.running.items()):
            output = await task
            told = oracle(past, wanted)
            assert output.tokens == told[: len(output.tokens)]
            assert output.reason == "length"
            self.tokens[context] = [*past, *told]
        self.running.clear()

    # ------------------------------------------------------------------------------------------------------------------------ rules

    @rule(target=contexts, kind=st.sampled_from([Durability.JOURNAL, Durability.JOURNAL, Durability.FSYNC]))
    def alloc(self, kind: Durability) -> str:
        context = self.do(self.rig.alloc(durability=kind))
        self.tokens[context] = []
        return context

    @rule(context=contexts, seed=st.integers(0, 50), num_input=st.integers(1, 40), wanted=st.integers(1, 20))
    def infer(self, context: str, seed: int, num_input: int, wanted: int) -> None:
        if context in self.tokens and context not in self.running and context not in self.asleep and len(self.tokens[context]) < 140:
            past = [*self.tokens[context], *prompt_of(seed, num_input)]
            self.do(self._begin(context, prompt_of(seed, num_input), past, wanted))

    async def _begin(self, context: str, given: tuple[int, ...], past: list[int], wanted: int) -> None:
        self.running[context] = self.rig.begin(context, given, wanted), past, wanted
        await self.rig.until(lambda: len(self.rig.tokens(context)) >= len(past))

    @rule(num_turns=st.integers(1, 40))
    def let_it_run(self, num_turns: int) -> None:
        async def turn() -> None:
            for _ in range(num_turns):
                await asyncio.sleep(0)

        self.do(turn())

    @rule()
    def let_it_finish(self) -> None:
        self.do(self.finish_all())

    @rule(context=contexts)
    def cancel(self, context: str) -> None:
        if context in self.running:
            task, past, wanted = self.running.pop(context)
            self.do(self.rig.kernel.cancel(ANN, context))
            self.do(asyncio.wait_for(task, 20))
            self.tokens[context] = [*past, *oracle(past, wanted)][: len(self.rig.tokens(context))]

    @rule(target=contexts, context=contexts, part=st.floats(0, 1))
    def fork(self, context: str, part: float) -> Any:
        if context not in self.tokens:
            return multiple()
        known = self.rig.tokens(context)
        at = round(part * len(known))
        child = self.do(self.rig.kernel.fork(ANN, ForkArgs(context, at=at))).id
        self.tokens[child] = known[:at]
        return child

    @rule(context=contexts, part=st.floats(0, 1))
    def truncate(self, context: str, part: float) -> None:
        if context in self.tokens and context not in self.running and context not in self.asleep:
            at = round(part * len(self.tokens[context]))
            self.do(self.rig.kernel.truncate(ANN, context, at))
            del self.tokens[context][at:]

    @rule(context=contexts)
    def suspend_or_resume(self, context: str) -> None:
        if context in self.asleep:
            self.do(self.rig.kernel.resume(ANN, context))
            self.asleep.remove(context)
        elif context in self.tokens and context not in self.running:
            self.do(self.rig.kernel.suspend(ANN, context))
            self.asleep.add(context)

    @rule(context=contexts)
    def suspend_to_disk(self, context: str) -> None:
        if context not in self.tokens or context in self.running or self.rig.machine.devices.first.disk_tier is None:
            return
        with suppress(DiskFull):
            info = self.do(self.rig.kernel.suspend_to_disk(ANN, context))
            assert (info.pages.host, info.pages.device) == (0, 0) or info.pages.shared
        self.asleep.add(context)

    @rule(at=st.floats(0, 1), is_cut=st.booleans(), which=st.integers(0, 1))
    def damage_the_page_file(self, at: float, is_cut: bool, which: int) -> None:
        devices = list(self.rig.machine.devices)
        tier = devices[which % len(devices)].disk_tier
        if tier is None:
            return
        offset = SUPERBLOCK_BYTES + int(at * 64 * SLAB)
        if is_cut:
            os.truncate(tier.file.path, offset)
        else:
            with tier.file.path.open("r+b") as raw:
                raw.seek(offset)
                raw.write(b"\xa5" * 3000)

    @rule(target=images, context=contexts)
    def checkpoint(self, context: str) -> Any:
        if context not in self.tokens or context in self.running:
            return multiple()
        image = self.do(self.rig.kernel.checkpoint(ANN, CheckpointArgs(context))).id
        self.taken[image] = list(self.tokens[context])
        return image

    @rule(target=contexts, image=images)
    def restore(self, image: str) -> str:
        restored = self.do(self.rig.kernel.restore(ANN, image, {}))
        self.tokens[restored.context.id] = list(self.taken[image])
        return restored.context.id

    @rule(context=consumes(contexts))
    def free(self, context: str) -> None:
        if context in self.tokens:
            self.do(self.rig.kernel.free(ANN, context))
            if context in self.running:
                assert self.do(asyncio.wait_for(self.running.pop(context)[0], 20)).reason in ("cancelled", "length")
            del self.tokens[context]
            self.asleep.discard(context)

    @rule(which=st.integers(0, 1))
    def kill_the_worker(self, which: int) -> None:
        workers = list(self.rig.worker_of.values())
        worker = workers[which % len(workers)]
        if worker.num_steps > 0 and not any(request.num_crashes for request in self.rig.machine.requests.values()):
            self.loop.call_soon(worker.die)
            self.do(asyncio.sleep(0))

    @rule(keeps_worker=st.booleans())
    def kill_the_daemon(self, keeps_worker: bool) -> None:
        going_on = {context: (past, wanted) for context, (_task, past, wanted) in self.running.items()}
        self.running.clear()
        self.do(self._die_and_return(going_on, keeps_worker))

    async def _die_and_return(self, going_on: dict[str, tuple[list[int], int]], keeps_worker: bool) -> None:
        await self.rig.die_and_return(keeps_worker=keeps_worker)
        for context, (past, wanted) in going_on.items():
            known = self.rig.tokens(context)
            assert known == [*past, *oracle(past, wanted)][: len(known)]
            self.running[context] = self.rig.begin_attach(context, len(past)), past, wanted

    # ------------------------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def every_context_has_its_tokens(self) -> None:
        for context, tokens in self.tokens.items():
            if context in self.running:
                _task, past, wanted = self.running[context]
                known = self.rig.tokens(context)
                assert known == [*past, *oracle(past, wanted)][: len(known)]
                assert len(known) >= len(past)
            else:
                assert self.rig.tokens(context) == tokens
                assert (self.rig.stat(context).state is ContextState.SUSPENDED) == (context in self.asleep)

    @invariant()
    def the_books_agree(self) -> None:
        if hasattr(self, "rig"):
            self.rig.check()


class TwoDevicesLife(DaemonLife):
    """The same with two devices that are unlike, and a copy of the model on each."""

    @initialize(lead=st.integers(0, 3), below=st.sampled_from([(0, 0), (2, 0), (3, 32), (32, 32)]), slabs=st.sampled_from([(5, 5), (3, 7)]))
    def begin(self, lead: int, below: tuple[int, int], slabs: tuple[int, int]) -> None:  # type: ignore[override]
        host_slabs, disk_slabs = below
        self.rig = Rig(self.folder, Sizes(0, host_slabs, disk_slabs, max_rows=3, max_step_tokens=24))
        sizes = zip(("a", "b"), slabs, strict=True)
        self.rig.devices = tuple(DeviceConfig(name=name, driver="fake", device_bytes=count * SLAB) for name, count in sizes)
        self.rig.script = Script(lead=lead)
        self.do(self.rig.start())
        for device in ("a", "b"):
            self.do(self.rig.load(device=device))

    @invariant()
    def a_context_has_pages_on_its_device_alone(self) -> None:
        if hasattr(self, "rig"):
            tables = {context.table: context.device for context in self.rig.machine.contexts if context.table is not None}
            for device in self.rig.machine.devices:
                assert {table for table in device.pager._tables if table in tables} == {
                    t for t, name in tables.items() if name == device.name
                }


TestDaemonLife = DaemonLife.TestCase
TestDaemonLife.settings = settings(max_examples=25, stateful_step_count=25)
TestTwoDevicesLife = TwoDevicesLife.TestCase
TestTwoDevicesLife.settings = settings(max_examples=15, stateful_step_count=25)
