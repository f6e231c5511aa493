"""The host CPU as a part of a split device: the arena, the engine and the runners of the CPU driver, over some layers of a model."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from drivers.contract import Capabilities, OpenSpec, OpReport
from drivers.cpu import CpuDriver
from drivers.cpu_ground import Ground, open_ground
from drivers.cpu_model import make_runner, told_of
from drivers.cpu_ops import Decision
from drivers.cpu_report import op_reports, runs_on
from drivers.cpu_runners import NativeRunner, Runner, TorchRunner
from drivers.cpu_shapes import Held, frames_of
from drivers.errors import DeviceLost, ModelUnsupported
from drivers.models.decoder import DecoderWeights, Layer
from drivers.models.loader import ModelFiles, Target, layers_bytes, load_weights, segment_views
from drivers.models.weight import Weight
from drivers.rows import StepRows
from drivers.sampling import Asked, Pick
from drivers.split.stage import Part, PartPlaces, PartSpec, Progress
from drivers.tails import ArenaTails
from drivers.trial import Pages, prefill_pace


@dataclass(frozen=True, slots=True)
class CpuStageModel:
    """See `drivers.split.stage.StageModel`."""

    runner: NativeRunner | TorchRunner
    pages: tuple[ArenaTails, ...]
    layers: range
    segments: tuple[int, ...]
    decision: Decision
    ground: Ground
    prefill_s: float

    @property
    def needs_clean_pages(self) -> bool:
        """Native code reads nothing that a row does not see; torch does."""
        return self.decision.program is None

    def run_layers(self, share: StepRows, hidden: Tensor | None) -> Tensor:
        """See `StageModel`."""
        with self.ground.copier.pacer.step():  # a load rests meanwhile
            return self.runner.run_layers(share, self.runner.first(share) if hidden is None else hidden, self.layers).float()

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """See `StageModel`."""
        return self.runner.logits(hidden, tokens).float()

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """See `StageModel`."""
        return self.runner.draw(hidden, tokens, asked)

    def ops(self) -> tuple[OpReport, ...]:
        """See `StageModel`."""
        return op_reports(self.decision, self.ground.ops, self.segments)

    def runs_on(self) -> str:
        """See `StageModel`."""
        return runs_on(self.decision, self.ground.ops)

    def close(self) -> None:
        """See `StageModel`."""
        self.runner.close()


class CpuStage:
    """See `drivers.split.stage.Stage`."""

    def __init__(self) -> None:
        self._ground: Ground | None = None
        self._paces: dict[Part, float] = {}  # tried with the first load of each

    def probe(self) -> Capabilities:
        """See `Stage`; what is not whole pages of the machine cannot be given back."""
        ground, told = self._ground, CpuDriver().probe()
        is_whole = ground is None or ground.arena.memory.slab_bytes % mmap.PAGESIZE == 0
        return msgspec.structs.replace(told, gives_back=told.gives_back and is_whole)

    def open(self, spec: OpenSpec) -> None:
        """See `Stage`."""
        self._ground = open_ground(spec, None)

    def inspect(self, part: Part) -> PartSpec:
        """See `Stage`."""
        ground = self._opened()
        decision = ground.ops.decide(part.source)
        files, pages = decision.files, ground.ops.pages
        if files.config.foreign is not None:
            raise ModelUnsupported(
                f"{files.config.architecture} is computed by transformers as a whole; run it on a device that is not split."
            )
        sizes = tuple(files.segments[idx].size_bytes for idx in part.segments(files.config.num_layers))
        held = Held(part.layers, ())
        page_bytes = tuple(layers_bytes(files.config, len(held.of(group)), pages, files.runtime.kv_quant) for group in files.config.groups)
        return PartSpec(told_of(decision, ground), sizes, page_bytes)

    def load(self, part: Part, places: PartPlaces, progress: Progress) -> CpuStageModel:
        """See `Stage`."""
        ground = self._opened()
        decision = ground.ops.decide(part.source)
        files, held = decision.files, Held(part.layers, places.frame_bytes)
        segments = part.segments(files.config.num_layers)
        target = Target(ground.arena.bytes, places.offsets, ground.ops.pages.dtype, ground.copier)
        lacking = _only(files, [segments[idx] for idx in places.missing])
        load_weights(lacking, replace(target, offsets=[places.offsets[idx] for idx in places.missing]), progress)
        found = dict(zip(segments, places.offsets, strict=True))
        parts = {idx: segment_views(files.segments[idx], target, offset) for idx, offset in found.items()}
        offsets = tuple(found.get(idx, 0) for idx in range(len(files.segments)))
        frames = frames_of(files, ground.ops.pages, held)
        runner = make_runner(decision, ground, _weights(parts, offsets), offsets, held)
        if part not in self._paces:
            pages = Pages(frames, ground.ops.pages.granule_bytes, files.config.max_positions, files.config.vocab_size)
            self._paces[part] = _pace(runner, part, files.config.hidden_size, pages)
        tails = tuple(ArenaTails(ground.arena, frame) for frame in frames)
        return CpuStageModel(runner, tails, part.layers, segments, decision, ground, self._paces[part])

    def read(self, start: int, target: memoryview) -> None:
        """See `Stage`."""
        _copy(target, self._opened().arena.span(start, len(target)))

    def write(self, start: int, source: memoryview) -> None:
        """See `Stage`."""
        _copy(self._opened().arena.span(start, len(source)), source)

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        """See `Stage`."""
        arena = self._opened().arena
        _copy(arena.span(target, size_bytes), arena.span(source, size_bytes))

    def zero(self, start: int, size_bytes: int) -> None:
        """See `Stage`."""
        self._opened().arena.bytes[start : start + size_bytes].zero_()

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """See `Stage`."""
        self._opened().arena.memory.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """See `Stage`."""
        self._opened().arena.memory.take(slabs)

    def close(self) -> None:
        """See `Stage`."""
        ground, self._ground = self._ground, None
        if ground is not None:
            ground.close()

    def _opened(self) -> Ground:
        if self._ground is None:
            raise DeviceLost("The driver is not open.")
        return self._ground


def _copy(target: memoryview, source: memoryview) -> None:
    """Without Python's lock: steps go on meanwhile."""
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def _pace(runner: NativeRunner | TorchRunner, part: Part, width: int, pages: Pages) -> float:
    def through(trial: Runner, share: StepRows) -> None:
        assert isinstance(trial, NativeRunner | TorchRunner), "a runner in another arena is of the same kind"
        hidden = trial.first(share) if part.has_ends else torch.zeros(len(share.tokens), width)
        trial.run_layers(share, hidden, part.layers)

    return prefill_pace(runner, pages, through)


def _only(files: ModelFiles, idxs: Sequence[int]) -> ModelFiles:
    """The same files, of some segments."""
    return replace(files, segments=tuple(files.segments[idx] for idx in idxs))


def _weights(parts: dict[int, dict[str, Tensor | Weight]], offsets: Sequence[int]) -> DecoderWeights:
    """What is here of a model's weights; segments that are elsewhere have no parts."""
    first, *layers, last = (parts.get(idx, {}) for idx in range(len(offsets)))
    return DecoderWeights(first, tuple(Layer(offset, each) for offset, each in zip(offsets[1:-1], layers, strict=True)), last)
