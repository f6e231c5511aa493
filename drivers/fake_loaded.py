"""What the fake driver has loaded: models and adapters, and the patterns in the arena that stand for their weights.

An adapter moves the root of its rows' links, so that they draw other tokens than the base's rows, and so that a row finds the frames of
a row with another adapter, or with none, to be the history of somebody else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from drivers.contract import LoadSpec, ModelSpec, OpenSpec, SegmentSpec
from drivers.errors import DeviceLost, PlanRejected, UnknownModel
from drivers.fake_memory import FakeSpace
from drivers.fake_model import FakeAdapter, FakeModel
from drivers.load_check import check_ids
from drivers.rows import GroupLimit, ModelLimit, Row, StepRows

Patterns = tuple[tuple[int, np.ndarray], ...]  # (offset in the arena, bytes)


@dataclass(frozen=True, slots=True)
class LoadedFake:
    """A loaded model: what it says, where its KV lies, and its weights."""

    model: FakeModel
    spaces: Mapping[int, FakeSpace]
    limit: ModelLimit
    patterns: Patterns


@dataclass(frozen=True, slots=True)
class AdaptedFake:
    """A loaded adapter: whose it is, by how much it moves the root, and its weights."""

    base_id: int
    root: int
    patterns: Patterns


@dataclass(frozen=True, slots=True)
class _Shelves:
    models: Mapping[int, LoadedFake] = field(default_factory=dict)
    adapters: Mapping[int, AdaptedFake] = field(default_factory=dict)
    spaces: Mapping[int, FakeSpace] = field(default_factory=dict)  # those of unloaded models stay until a load names them again


class FakeLoaded:
    """Models and adapters by id. What a step sees is replaced, never changed: a load in another thread may end meanwhile."""

    def __init__(self, memory: OpenSpec) -> None:
        self._memory = memory
        self._shelves = _Shelves()
        self._lock = threading.Lock()

    @property
    def models(self) -> Mapping[int, LoadedFake]:
        """Loaded models by id."""
        return self._shelves.models

    @property
    def spaces(self) -> Mapping[int, FakeSpace]:
        """Every space that pages may be in."""
        return self._shelves.spaces

    def limits(self) -> dict[int, ModelLimit]:
        """What rows of each model may hold."""
        shelves = self._shelves
        limits = {model_id: loaded.limit for model_id, loaded in shelves.models.items()}
        for adapter_id, adapter in shelves.adapters.items():
            if adapter.base_id in limits:
                limit = limits[adapter.base_id]
                limits[adapter.base_id] = replace(limit, adapter_ids=limit.adapter_ids | {adapter_id})
        return limits

    def check(self, spec: LoadSpec, told: ModelSpec) -> None:
        """Whether a load fits what is there. Raises: PlanRejected, UnknownModel."""
        shelves, arena_bytes = self._shelves, self._memory.num_slabs * self._memory.slab_bytes
        check_ids(spec, {model_id: loaded.spaces for model_id, loaded in shelves.models.items()}, shelves.adapters)
        if len(spec.offsets) != len(told.segments) or len(spec.space_ids) != len(told.groups):
            raise PlanRejected(f"It has {len(told.segments)} segments and {len(told.groups)} groups.")
        for segment, offset in zip(told.segments, spec.offsets, strict=True):
            if offset < 0 or offset + segment.size_bytes > arena_bytes:
                raise PlanRejected(f"Segment {segment.name} lies outside the arena.")

    def add(self, spec: LoadSpec, told: ModelSpec, patterns: Patterns) -> None:
        """A load is done."""
        if spec.base_id:
            adapter = AdaptedFake(spec.base_id, FakeAdapter.read(Path(spec.source.path)).root, patterns)
            with self._lock:
                self._shelves = replace(self._shelves, adapters={**self._shelves.adapters, spec.model_id: adapter})
            return
        seated = self._seat(spec, told, patterns)
        with self._lock:
            shelves = self._shelves
            models = {**shelves.models, spec.model_id: seated}
            self._shelves = replace(shelves, models=models, spaces={**shelves.spaces, **seated.spaces})

    def patterns(self, model_id: int) -> Patterns:
        """The weights of a model or an adapter. Raises: UnknownModel."""
        held = self._shelves.models.get(model_id) or self._shelves.adapters.get(model_id)
        if held is None:
            raise UnknownModel(f"Model {model_id}.")
        return held.patterns

    def remove(self, model_id: int) -> None:
        """Forget a model or an adapter. Raises: UnknownModel."""
        with self._lock:
            shelves = self._shelves
            if model_id not in shelves.models and model_id not in shelves.adapters:
                raise UnknownModel(f"Model {model_id}.")
            models = {other: loaded for other, loaded in shelves.models.items() if other != model_id}
            adapters = {other: loaded for other, loaded in shelves.adapters.items() if other != model_id}
            self._shelves = replace(shelves, models=models, adapters=adapters)

    def of(self, share: StepRows, arena: np.ndarray) -> LoadedFake:
        """The model of a step, whose weights and adapters are as they were loaded. Raises: DeviceLost."""
        shelves = self._shelves
        loaded = shelves.models[share.model_id]
        parts = [loaded.patterns, *(shelves.adapters[row.adapter_id].patterns for row in share.rows if row.adapter_id)]
        for offset, pattern in (entry for patterns in parts for entry in patterns):
            if not np.array_equal(arena[offset : offset + len(pattern)], pattern):
                raise DeviceLost(f"The weights at byte {offset} of the arena were overwritten.")
        return loaded

    def spaces_of(self, loaded: LoadedFake, row: Row) -> Iterator[FakeSpace]:
        """The spaces of a row's model, with the root of its adapter."""
        moved = self._shelves.adapters[row.adapter_id].root if row.adapter_id else 0
        return (replace(space, root=space.root ^ moved) for space in loaded.spaces.values())

    def _seat(self, spec: LoadSpec, told: ModelSpec, patterns: Patterns) -> LoadedFake:
        model = FakeModel.read(Path(spec.source.path))
        num_frames = self._memory.num_slabs * self._memory.slab_bytes // self._memory.granule_bytes
        token_bytes = model.kv_bytes_per_token // len(model.windows)
        spaces = {
            space_id: FakeSpace(model.root, model.root ^ idx + 1, token_bytes, group.frame_bytes, group.window)
            for idx, (space_id, group) in enumerate(zip(spec.space_ids, told.groups, strict=True))
        }
        groups = tuple(GroupLimit(num_frames, group.window) for group in told.groups)
        return LoadedFake(model, spaces, ModelLimit(model.vocab_size, told.max_positions, groups), patterns)


def pattern_of(model: ModelSpec, segment: SegmentSpec) -> np.ndarray:
    """Return what stands for the weights of a segment."""
    unit = blake2b(f"{model.numerics} {segment.name}".encode(), digest_size=64).digest()
    return np.frombuffer(unit * (segment.size_bytes // len(unit) + 1), dtype=np.uint8)[: segment.size_bytes]
