"""What the checks of the conformance suite work with: an open driver with a loaded model, fresh frames, and rows that run to their end."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from drivers.contract import (
    Driver,
    FramePatch,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    Plan,
    RowResult,
    RowRun,
    RowStart,
    Sampling,
    StepResult,
    TokenLogprob,
)
from drivers.hostmem import HostMemory, host_frame_bytes
from memory.page import Move, Tier, Zero

GRANULE_BYTES = 4096
SLAB_BYTES = 1 << 20
PAGE_TOKENS = 16
MAX_ROWS = 8
MAX_STEP_TOKENS = 96
NUM_PAGES = 160  # per KV group, on the device
NUM_HOST_PAGES = 32
GREEDY = Sampling(temperature=0.0)

Frames = tuple[tuple[int, ...], ...]  # [group][page]


class Nonconforming(Exception):
    """The driver does not do what the contract says."""


def require(is_kept: bool, rule: str) -> None:
    """Raises: Nonconforming, with the rule that was not kept."""
    if not is_kept:
        raise Nonconforming(rule)


@dataclass(frozen=True, slots=True)
class Subject:
    """The driver under test, a model that it has to run, and models that it has to refuse."""

    make: Callable[[], Driver]
    model_path: Path
    refused_paths: tuple[Path, ...]
    adapter_path: Path | None = None  # of the model; None: the model is not the suite's own
    other_adapter_path: Path | None = None  # of a model with other layers

    @contextmanager
    def opened(self, spec: OpenSpec, host: HostMemory | None = None) -> Iterator[Driver]:
        """Give a driver with that memory, closed afterwards."""
        driver = self.make()
        try:
            driver.open(spec, os.dup(host.fd) if host is not None else None)
            yield driver
        finally:
            driver.close()

    @contextmanager
    def bench(self, *, batch_invariant: bool = False) -> Iterator[Bench]:
        """Give a driver with the model loaded as model 1, and room for another load of it."""
        with self.opened(open_spec(num_slabs=1)) as driver:
            model = driver.inspect(InspectSpec(str(self.model_path)))
        weights_bytes = sum(map(_whole_granules, (segment.size_bytes for segment in model.segments)))
        kv_bytes = NUM_PAGES * sum(group.frame_bytes for group in model.groups)
        num_slabs = math.ceil((2 * weights_bytes + kv_bytes) / SLAB_BYTES)
        page_bytes = NUM_HOST_PAGES * max(host_frame_bytes(group.frame_bytes, GRANULE_BYTES) for group in model.groups)
        host_bytes = page_bytes + weights_bytes
        host = HostMemory.create(host_bytes, GRANULE_BYTES)
        try:
            spec = msgspec.structs.replace(open_spec(num_slabs, host_bytes), batch_invariant=batch_invariant)
            with self.opened(spec, host) as driver:
                bench = Bench(driver, model, host, self.model_path)
                bench.load(model_id=1)
                yield bench
        finally:
            host.close()


def open_spec(num_slabs: int, host_bytes: int = 0) -> OpenSpec:
    """Return the memory that checks open drivers with."""
    return OpenSpec(
        num_slabs=num_slabs,
        slab_bytes=SLAB_BYTES,
        granule_bytes=GRANULE_BYTES,
        page_tokens=PAGE_TOKENS,
        max_rows=MAX_ROWS,
        max_step_tokens=MAX_STEP_TOKENS,
        threads=1,
        host_bytes=host_bytes,
    )


@dataclass(frozen=True, slots=True)
class How:
    """How a row is run: the same tokens have to come out whichever way is taken."""

    slot: int = 0
    model_id: int = 1
    quantum: int = 8
    chunk: int = 0  # tokens of the prefill per plan; 0: all at once
    position: int = 0  # KV of the tokens before it is in `frames`
    frames: Frames = ()  # (): fresh ones
    sampling: Sampling = GREEDY
    adapter_id: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """What a row gave, and the frames that hold its KV."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    frames: Frames
    results: tuple[RowResult, ...]  # of every step that it took part in


class Late(NamedTuple):
    """A zero that comes after the moves of its plan."""

    zero: Zero


class Bench:
    """An open driver with a loaded model. Frames are handed out once and never come back."""

    def __init__(self, driver: Driver, model: ModelSpec, host: HostMemory, model_path: Path) -> None:
        self.driver = driver
        self.model = model
        self.host = host
        self.model_path = model_path
        self._next_seq = 0
        self._next_granule = 0
        self._next_host_granule = 0

    def load(self, model_id: int, progress: Callable[[int, int], None] = lambda _done, _total: None) -> LoadedModel:
        """Load the model behind what is taken; its spaces are 10 * model_id + group."""
        return self.load_at(model_id, self.take_weights(), progress)

    def take_weights(self) -> tuple[int, ...]:
        """Return offsets in the arena for the segments of a load."""
        return tuple(self._take_bytes(segment.size_bytes) * GRANULE_BYTES for segment in self.model.segments)

    @property
    def host_weights(self) -> tuple[int, ...]:
        """Where images of the segments may lie: behind the pages of the host tier."""
        starts, end = [], self.host.size_bytes
        for segment in reversed(self.model.segments):
            end -= _whole_granules(segment.size_bytes)
            starts.append(end)
        return tuple(reversed(starts))

    def load_adapter(self, adapter_id: int, path: Path, base_id: int = 1) -> ModelSpec:
        """Load an adapter of a loaded model behind what is taken, and return what it told of itself."""
        source = InspectSpec(str(path), base=str(self.model_path))
        told = self.driver.inspect(source)
        offsets = tuple(self._take_bytes(segment.size_bytes) * GRANULE_BYTES for segment in told.segments)
        self.driver.load(LoadSpec(adapter_id, source, (), offsets, base_id=base_id), lambda _done, _total: None)
        return told

    def load_at(
        self, model_id: int, offsets: tuple[int, ...], progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> LoadedModel:
        """Load the model at offsets of the arena."""
        space_ids = tuple(self.space(group, model_id) for group in range(len(self.model.groups)))
        return self.driver.load(LoadSpec(model_id, InspectSpec(str(self.model_path)), space_ids, offsets), progress)

    def space(self, group: int, model_id: int = 1) -> int:
        """Return the space id of a group."""
        return 10 * model_id + group

    def submit(
        self,
        num_steps: int = 0,
        *,
        pages: tuple[Zero | Move | Late, ...] = (),
        clears: tuple[int, ...] = (),
        starts: tuple[RowStart, ...] = (),
        patches: tuple[FramePatch, ...] = (),
        runs: tuple[RowRun, ...] = (),
    ) -> list[StepResult]:
        """Apply a plan, run its steps, and return their results. Raises: what the driver raises."""
        self._next_seq += 1
        plan = Plan(
            boot_generation=1,
            seq=self._next_seq,
            zeros=tuple(page for page in pages if isinstance(page, Zero)),
            moves=tuple(page for page in pages if isinstance(page, Move)),
            late_zeros=tuple(page.zero for page in pages if isinstance(page, Late)),
            clears=clears,
            starts=starts,
            patches=patches,
            runs=runs,
            num_steps=num_steps,
        )
        self.driver.apply(plan)
        return [self.driver.step(step_idx) for step_idx in range(num_steps)]

    def prompt(self, num_tokens: int, salt: int = 0) -> tuple[int, ...]:
        """Return tokens to start from; another salt gives others."""
        span = self.model.vocab_size - 3
        return tuple(3 + (idx * idx * 7 + idx * 11 + salt * 13 + 5) % span for idx in range(num_tokens))

    def take(self, num_tokens: int) -> Frames:
        """Return zeroed frames for so many positions."""
        num_pages = math.ceil(num_tokens / PAGE_TOKENS)
        frames = tuple(tuple(self._take_bytes(group.frame_bytes) for _ in range(num_pages)) for group in self.model.groups)
        self.submit(pages=tuple(Zero(self.space(group), Tier.DEVICE, frame) for group, row in enumerate(frames) for frame in row))
        return frames

    def take_host(self, frames: Frames) -> Frames:
        """Return host frames for the pages in device frames."""
        return tuple(tuple(self._take_host_bytes(self.model.groups[group].frame_bytes) for _ in row) for group, row in enumerate(frames))

    def start(self, tokens: tuple[int, ...], frames: Frames, how: How) -> RowStart:
        """Return the start of a row that goes on behind `tokens`."""
        pending = tokens[how.position :]
        return RowStart(how.slot, how.model_id, how.position, pending, frames, how.sampling, adapter_id=how.adapter_id)

    def generate(self, tokens: tuple[int, ...], num_tokens: int, how: How | None = None) -> Generated:
        """Run a row from its start until it has sampled `num_tokens`, stopped or failed, and clear it."""
        how = how or How()
        frames = how.frames or self.take(len(tokens) + num_tokens)
        starts: tuple[RowStart, ...] = (self.start(tokens, frames, how),)
        num_pending = len(tokens) - how.position
        results: list[RowResult] = []
        num_left = num_tokens
        while num_left and not _is_over(results):
            count = min(how.chunk or num_pending, num_pending)
            num_steps = 1 if count < num_pending else min(how.quantum, num_left)
            steps = self.submit(num_steps, starts=starts, runs=(RowRun(how.slot, count),))
            answers = [row for step in steps for row in step.rows if row.slot == how.slot]
            require(bool(answers), "a row that runs is in the result of its step")
            results += answers
            num_sampled = sum(len(row.tokens) for row in results)
            num_left = num_tokens - num_sampled
            num_pending = max(num_pending - count, 1)
            starts = ()
        self.submit(clears=(how.slot,))
        return Generated(
            tokens=tuple(token for row in results for token in row.tokens),
            logprobs=tuple(logprob for row in results for logprob in row.logprobs),
            frames=frames,
            results=tuple(results),
        )

    def moves(self, sources: Frames, targets: Frames, tiers: tuple[Tier, Tier]) -> tuple[Move, ...]:
        """Return the copies from one set of frames to another; pages are known by their group and number."""
        return tuple(
            Move(self.space(group), tiers[0], source, tiers[1], target, page_key(group, idx), PAGE_TOKENS)
            for group, (row, others) in enumerate(zip(sources, targets, strict=True))
            for idx, (source, target) in enumerate(zip(row, others, strict=True))
        )

    def _take_bytes(self, size_bytes: int) -> int:
        granule = self._next_granule
        self._next_granule += _whole_granules(size_bytes) // GRANULE_BYTES
        return granule

    def _take_host_bytes(self, payload_bytes: int) -> int:
        granule = self._next_host_granule
        self._next_host_granule += host_frame_bytes(payload_bytes, GRANULE_BYTES) // GRANULE_BYTES
        return granule


def page_key(group: int, page_idx: int) -> bytes:
    """Return the key of a page: 16 bytes that differ from page to page."""
    return f"page {group:4} {page_idx:6}".encode()


def _is_over(results: list[RowResult]) -> bool:
    return bool(results) and (results[-1].is_stopped or bool(results[-1].error))


def _whole_granules(size_bytes: int) -> int:
    return -(-size_bytes // GRANULE_BYTES) * GRANULE_BYTES
