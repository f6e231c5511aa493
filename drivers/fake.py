"""The fake driver: no arithmetic, no heavy libraries, and every duty of a real one. Tests of the kernel run on it.

It speaks the language of `drivers.fake_model`, keeps a witness of every token in the frames that the kernel names (`drivers.fake_memory`),
and reads the whole past of a row back through its page table before each step. A kernel that mixes up frames, loses a page or reuses one
too early gets a row error, never luck. Weights are patterns in the arena, looked at again before each step.

Penalties are taken and have no effect. Faults are scripted by `OpenSpec.options`, see `drivers.fake_script`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from drivers.contract import (
    Capabilities,
    CopyTimes,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    OpReport,
    Plan,
    RowResult,
    StepResult,
)
from drivers.errors import DeviceLost, DeviceOutOfMemory, HostPageCorrupt, OptionUnknown, PageCorrupt, PlanRejected
from drivers.fake_loaded import FakeLoaded, LoadedFake, pattern_of
from drivers.fake_memory import FakeMemory, FakeSpace, HistoryLost
from drivers.fake_model import FakeAdapter, FakeModel, capabilities, describe, describe_adapter, draw, links_after, logprob
from drivers.fake_script import DRAFT_BYTES, MEASURED_BYTES, FakeScript
from drivers.plan_check import check_rows
from drivers.rows import Row, RowState, RowTable, StepRows, right_guesses
from memory.page import Move, Tier


class FakeDriver:
    """A device that exists only in host memory."""

    def __init__(self) -> None:
        self._device: _FakeDevice | None = None

    def probe(self) -> Capabilities:
        """Say what this driver can do."""
        return capabilities()

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take the arena and map the host tier. Raises: OptionUnknown, PlanRejected, HostTierInvalid."""
        if self._device is not None:
            raise PlanRejected("The driver is open already.")
        try:
            script = msgspec.convert(spec.options, FakeScript, strict=False)
        except msgspec.ValidationError as error:
            raise OptionUnknown(f"{error}.") from error
        self._device = _FakeDevice(spec, host_fd, script)

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Read `fake.json`. Raises: ModelUnsupported, ModelCorrupt."""
        return self._opened().inspect(spec)

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        """Write the patterns. Raises: ModelUnsupported, ModelCorrupt, DeviceOutOfMemory, PlanRejected."""
        return self._opened().load(spec, progress)

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy what stands for weights to the host tier. Raises: UnknownModel, PlanRejected."""
        return self._opened().park(model_id, host_offsets)

    def unload(self, model_id: int) -> None:
        """Forget a model. Raises: UnknownModel."""
        self._opened().unload(model_id)

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Spoil what is in slabs. Raises: PlanRejected."""
        self._opened().memory.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have slabs again, spoilt. Raises: PlanRejected."""
        self._opened().memory.take(slabs)

    def apply(self, plan: Plan) -> None:
        """Carry out what comes before the steps. Raises: PageCorrupt, PlanRejected."""
        self._opened().apply(plan)

    def copied(self) -> CopyTimes:
        """What the script says of the copies since this was asked last."""
        return self._opened().copied()

    def step(self, step_idx: int) -> StepResult:
        """Run a step. Raises: DeviceLost, PlanRejected."""
        return self._opened().step(step_idx)

    def close(self) -> None:
        """Give everything back."""
        if self._device is not None:
            self._device.memory.close()
            self._device = None

    def _opened(self) -> _FakeDevice:
        if self._device is None:
            raise PlanRejected("The driver is not open.")
        return self._device


class _FakeDevice:
    """An open driver."""

    def __init__(self, spec: OpenSpec, host_fd: int | None, script: FakeScript) -> None:
        self.memory = FakeMemory(spec, host_fd)
        self._spec = spec
        self._script = script
        self._table = RowTable(spec.max_rows, spec.max_step_tokens, spec.page_tokens)
        self._loaded = FakeLoaded(spec)
        self._links: dict[int, int] = {}  # by row slot: the link after the last token that the row computed here
        self._workspace: dict[int, int] = {}  # of models that guess in this step
        self._num_steps = self._num_loads = self._num_host_copies = self._num_parked = 0
        self._copied = {Tier.DEVICE: MEASURED_BYTES, Tier.HOST: MEASURED_BYTES}  # bytes to a tier, not told yet

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        if spec.base:
            return describe_adapter(FakeAdapter.read(Path(spec.path)), FakeModel.read(Path(spec.base)), self._spec, spec)
        return describe(FakeModel.read(Path(spec.path)), self._spec, spec)

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        began = time.monotonic()
        self._num_loads += 1
        told = self.inspect(spec.source)
        self._loaded.check(spec, told)
        if self._num_loads == self._script.oom_at_load:
            raise DeviceOutOfMemory(needed_bytes=told.segments[0].size_bytes, free_bytes=0)
        total_bytes = sum(segment.size_bytes for segment in told.segments)
        patterns: list[tuple[int, np.ndarray]] = []
        host_bytes = 0
        for idx, (segment, offset) in enumerate(zip(told.segments, spec.offsets, strict=True)):
            time.sleep(self._script.slow_load_s / len(told.segments))
            pattern = pattern_of(told, segment)
            image = self.memory.image(spec, idx, segment.size_bytes)
            self.memory.arena[offset : offset + segment.size_bytes] = pattern if image is None else image
            host_bytes += 0 if image is None else image.size
            patterns.append((offset, pattern))
            progress(sum(written.size for _, written in patterns), total_bytes)
        self._loaded.add(spec, told, tuple(patterns))
        num_corrupt = sum(self.memory.image(spec, idx, len(pattern)) is None for idx, (_, pattern) in enumerate(patterns))
        return LoadedModel(
            spec.model_id,
            total_bytes,
            time.monotonic() - began,
            host_bytes=host_bytes,
            num_corrupt=num_corrupt if spec.host_offsets else 0,
            prefill_s=self._script.prefill_s,
            runs_on="a dream of tokens",
            ops=(OpReport("hash", "fake.hash", num_calls=1, why="there is no other"),),
        )

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        places = tuple((offset, len(pattern)) for offset, pattern in self._loaded.patterns(model_id))
        checksums = self.memory.park(places, host_offsets)
        first, self._num_parked = self._num_parked + 1, self._num_parked + len(checksums)
        if first <= self._script.corrupt_parked <= self._num_parked:
            self.memory.spoil_byte(host_offsets[self._script.corrupt_parked - first])
        return checksums

    def unload(self, model_id: int) -> None:
        self._loaded.remove(model_id)

    def apply(self, plan: Plan) -> None:
        spaces = self._loaded.spaces
        self._check_pages(plan, spaces)
        check_rows(plan, self._table, self._loaded.limits())
        for zero in plan.zeros:
            self.memory.zero(spaces[zero.space_id], zero)
        corrupt = tuple(idx for idx, move in enumerate(plan.moves) if not self._make(spaces[move.space_id], move))
        for zero in plan.late_zeros:
            self.memory.zero(spaces[zero.space_id], zero)
        if corrupt:
            raise PageCorrupt(corrupt)
        for row in self._table.apply(plan):
            self._links.pop(row.slot, None)

    def copied(self) -> CopyTimes:
        told, self._copied = self._copied, {Tier.DEVICE: 0, Tier.HOST: 0}
        return self._script.copies(told[Tier.DEVICE], told[Tier.HOST])

    def step(self, step_idx: int) -> StepResult:
        began = time.monotonic()
        self._num_steps, self._workspace = self._num_steps + 1, {}
        self._act_out()
        results: list[RowResult] = []
        num_tokens = 0
        for share in self._table.take(step_idx, self._guess):
            loaded = self._loaded.of(share, self.memory.arena)
            results += [self._compute(loaded, share, idx) for idx in range(len(share.rows))]
            num_tokens += sum(share.counts)
        compute_s = self._script.compute_s(num_tokens, time.monotonic() - began)
        return StepResult(tuple(results), compute_s, num_tokens, workspace=self._workspace)

    def _compute(self, loaded: LoadedFake, share: StepRows, idx: int) -> RowResult:
        """Compute a row's part of a step."""
        row, guesses = share.rows[idx], share.drafts[idx] if share.drafts else ()
        tokens = [*row.pending[: share.num_pending(idx)], *guesses]
        if self._script.error_token in tokens:
            raise DeviceLost(f"Token {self._script.error_token} was computed.")
        try:
            links = links_after(self._recall(loaded, row), tokens, row.position)
        except HistoryLost as error:
            return self._fail(row, str(error))
        if self._script.nan_token in tokens:
            return self._fail(row, "The logits are not finite.")
        for space, table in zip(loaded.spaces.values(), row.tables, strict=True):
            self.memory.write(space, table, row.position, tokens, links)
        self._links[row.slot] = links[share.num_pending(idx) - 1]
        return self._answer(loaded.model, share, idx, links)

    def _answer(self, model: FakeModel, share: StepRows, idx: int, links: list[int]) -> RowResult:
        """Sample or score, and advance the row."""
        row, count = share.rows[idx], share.num_pending(idx)
        if not share.samples(idx):
            first, targets = share.scored(idx)
            scored = links[first - share.starts[idx] :]
            logprobs = tuple(logprob(model, link, target, 0) for link, target in zip(scored, targets, strict=False))
            self._table.advance(row, count)
            return RowResult(row.slot, logprobs=logprobs)
        guesses, ends = share.drafts[idx] if share.drafts else (), links[count - 1 :]
        sampled = [draw(model, link, row.position + count + after, row.sampling) for after, link in enumerate(ends)]
        self._table.advance(row, count)
        tokens = self._table.accept(row, right_guesses(sampled, guesses))
        self._links[row.slot] = ends[len(tokens) - 1]
        num_top = row.sampling.num_logprobs
        logprobs = tuple(logprob(model, link, token, num_top) for link, token in zip(ends, tokens, strict=False)) if num_top >= 0 else ()
        return RowResult(row.slot, tokens, logprobs, is_stopped=row.state is RowState.STOPPED, num_drafted=len(guesses))

    def _guess(self, row: Row, most: int) -> list[int]:
        """The tokens to come, as many as the script says of them right."""
        model = self._loaded.models[row.model_id].model
        link, guesses = self._links.get(row.slot), []
        if link is None or not self._script.draft_hits:
            return []
        self._workspace |= dict.fromkeys({row.draft_model_id} & self._loaded.models.keys(), DRAFT_BYTES)
        token = row.pending[0]
        for idx in range(most):
            link = links_after(link, [token], row.position + idx)[0]
            right = draw(model, link, row.position + idx + 1, row.sampling)
            token = right if idx < self._script.draft_hits else (right + 1) % model.vocab_size
            guesses.append(token)
        return guesses

    def _fail(self, row: Row, error: str) -> RowResult:
        self._table.fail(row)
        return RowResult(row.slot, error=error)

    def _recall(self, loaded: LoadedFake, row: Row) -> int:
        """Return the link before the row's next token, as its frames tell it. Raises: HistoryLost."""
        spaces = zip(self._loaded.spaces_of(loaded, row), row.tables, strict=True)
        links = {self.memory.last_link(space, table, row.position) for space, table in spaces}
        remembered = self._links.get(row.slot)
        if len(links | ({remembered} - {None})) != 1:
            raise HistoryLost(f"The frames before position {row.position} hold the history of another row.")
        return links.pop()

    def _make(self, space: FakeSpace, move: Move) -> bool:
        """Make a move, and say whether its source held the page."""
        try:
            self.memory.move(space, move)
        except HostPageCorrupt:
            return False
        if move.source_tier is not move.target_tier:
            self._copied[move.target_tier] += space.frame_bytes
        if move.target_tier is Tier.HOST:
            self._num_host_copies += 1
            if self._num_host_copies == self._script.corrupt_host_copy:
                self.memory.spoil(move.target_frame)
        return True

    def _check_pages(self, plan: Plan, spaces: Mapping[int, FakeSpace]) -> None:
        for space_id, tier, frame in [
            *plan.zeros,
            *plan.late_zeros,
            *((move.space_id, move.source_tier, move.source_frame) for move in plan.moves),
            *((move.space_id, move.target_tier, move.target_frame) for move in plan.moves),
        ]:
            if space_id not in spaces:
                raise PlanRejected(f"Space {space_id} is not open.")
            self.memory.check(spaces[space_id], tier, frame)

    def _act_out(self) -> None:
        """Do what the script says of this step."""
        if self._num_steps == self._script.die_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._num_steps == self._script.hang_at_step:
            threading.Event().wait()
        if self._script.step_s:
            time.sleep(self._script.step_s)
