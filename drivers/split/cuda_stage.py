"""An NVIDIA device as a part of a split device: the arena, the kernels and the decoder of the CUDA driver, over some layers of a model.

Steps are launched kernel by kernel and waited for: the parts of a split device compute one after the other, so there is nothing to be ahead
of, and graphs would be of half a step. Never run on a device yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from drivers.contract import Capabilities, OpenSpec, OpReport
from drivers.copier import Copier
from drivers.cuda.decoder import CudaDecoder
from drivers.cuda.driver import COPY_THREADS, DTYPES, CudaDriver, check_open, kv_quants_of, nvidia_runtime
from drivers.cuda.loading import TRIAL_TOKENS, idle_step, op_reports, sizes_of
from drivers.cuda.model import CudaFiles, FrameForm, build_decoder, only, open_files
from drivers.cuda.runtime import DeviceArena, Runtime
from drivers.cuda.steps import step_of
from drivers.cuda.weights import WeightCourier
from drivers.errors import DeviceLost, OptionUnknown
from drivers.models.loader import PageShape
from drivers.rows import StepRows
from drivers.sampling import Asked, Pick
from drivers.split.stage import Part, PartPlaces, PartSpec, Progress
from drivers.triton.layout import StepRows as DeviceRows


@dataclass(frozen=True, slots=True)
class CudaGround:
    """What a stage takes."""

    runtime: Runtime
    arena: DeviceArena
    pages: PageShape
    courier: WeightCourier
    max_tokens: int  # of a step

    def done(self, work: Callable[[], None]) -> None:
        """Have work done on the stream of steps."""
        self.runtime.compute.run(work)
        self.runtime.compute.record().wait()

    def copied(self, work: Callable[[], None]) -> None:
        """Have work done on the stream of copies, beside steps."""
        self.runtime.copies.run(work)
        self.runtime.copies.record().wait()


@dataclass(frozen=True, slots=True)
class CudaTails:
    """A part of the pages of one KV group."""

    ground: CudaGround
    form: FrameForm

    def clear_tail(self, frame: int, num_tokens: int) -> None:
        """See `PageTails`."""
        runtime, arena = self.ground.runtime, self.ground.arena.bytes
        granule, cut = self.ground.pages.granule_bytes, np.array([[frame, num_tokens]], dtype=np.int64)
        clear = runtime.kernels.clear_tails
        self.ground.copied(lambda: clear(arena, granule, self.form.layer, self.form.num_layers, runtime.sent(cut)))


@dataclass(frozen=True, slots=True)
class CudaStageModel:
    """See `drivers.split.stage.StageModel`."""

    decoder: CudaDecoder
    ground: CudaGround
    pages: tuple[CudaTails, ...]
    part: Part
    files: CudaFiles
    nobody: DeviceRows  # of a pass that has no rows
    prefill_s: float

    @property
    def needs_clean_pages(self) -> bool:
        """Kernels read nothing that a row does not see."""
        return False

    def run_layers(self, share: StepRows, hidden: Tensor | None) -> Tensor:
        """See `StageModel`."""
        runtime, decoder = self.ground.runtime, self.decoder
        answers: list[Tensor] = []

        def work() -> None:
            seats = range(len(share.rows))
            step = step_of(share, seats, decoder.heads.num_queries_per_kv, runtime, self._tables(share))
            given = decoder.first(step) if hidden is None else self._sent(hidden)
            answers.append(decoder.run_layers(given, step, self.part.layers).float().cpu())

        self.ground.done(work)
        return answers[0]

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """See `StageModel`."""
        answers: list[Tensor] = []
        chosen = hidden[list(tokens)]
        self.ground.done(lambda: answers.append(self.decoder.logits(self._sent(chosen), self.nobody).float().cpu()))
        return answers[0]

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """See `StageModel`; the device answers for greedy rows alone."""
        if not all(one.given < 0 and one.row.sampling.is_plainly_greedy for one in asked):
            return None
        answers: list[Tensor] = []
        chosen = hidden[list(tokens)]
        self.ground.done(lambda: answers.append(_likeliest(self.decoder.logits(self._sent(chosen), self.nobody)).cpu()))
        return [Pick(token) for token in answers[0].tolist()]

    def ops(self) -> tuple[OpReport, ...]:
        """See `StageModel`."""
        return op_reports(self.files, self.part.segments(self.files.files.config.num_layers))

    def runs_on(self) -> str:
        """See `StageModel`."""
        return f"{self.ground.runtime.facts().name}, kernel by kernel"

    def close(self) -> None:
        """See `StageModel`."""

    def _sent(self, hidden: Tensor) -> Tensor:
        return self.ground.runtime.sent(hidden.float().numpy()).to(self.decoder.dtype)

    def _tables(self, share: StepRows) -> tuple[Tensor, ...]:
        """The page tables of a step's rows, a line each."""
        found: list[Tensor] = []
        for group in range(len(self.pages)):
            lines = [row.tables[group] for row in share.rows]
            table = np.zeros((len(lines), max(map(len, lines))), dtype=np.int32)
            for line, frames in zip(table, lines, strict=True):
                line[: len(frames)] = frames
            found.append(self.ground.runtime.sent(table))
        return tuple(found)


class CudaStage:
    """See `drivers.split.stage.Stage`."""

    def __init__(self, make_runtime: Callable[[int], Runtime] = nvidia_runtime) -> None:
        self._make_runtime = make_runtime
        self._opened_as: CudaGround | None = None

    def probe(self) -> Capabilities:
        """See `Stage`."""
        found = self._opened_as
        told = CudaDriver(self._make_runtime if found is None else lambda _device: found.runtime).probe()
        return msgspec.structs.replace(told, batch_invariant=False)  # a part's step is not told to be

    def open(self, spec: OpenSpec) -> None:
        """See `Stage`."""
        if spec.batch_invariant:
            raise OptionUnknown("batch_invariant is true; parts of a model on the cuda driver cannot promise it yet.")
        options = check_open(spec)
        runtime = self._make_runtime(options.device)
        try:
            arena = runtime.arena(spec.num_slabs, spec.slab_bytes)
        except BaseException:
            runtime.close()
            raise
        pages = PageShape(spec.page_tokens, spec.granule_bytes, DTYPES[spec.dtype])
        courier = WeightCourier(runtime, arena.bytes, None, Copier(spec.threads or COPY_THREADS))
        self._opened_as = CudaGround(runtime, arena, pages, courier, spec.max_step_tokens)

    def inspect(self, part: Part) -> PartSpec:
        """See `Stage`."""
        files = self._files(part)
        config = files.files.config
        sizes = tuple(files.files.segments[idx].size_bytes for idx in part.segments(config.num_layers))
        held = [sum(layer in part.layers for layer in group.layers) for group in config.groups]
        page_bytes = tuple(num * frame.layer.layer_bytes for num, frame in zip(held, files.frames, strict=True))
        return PartSpec(files.spec, sizes, page_bytes)

    def load(self, part: Part, places: PartPlaces, progress: Progress) -> CudaStageModel:
        """See `Stage`."""
        ground, whole = self._opened(), self._files(part)
        config = whole.files.config
        segments = part.segments(config.num_layers)
        held = [sum(layer in part.layers for layer in group.layers) for group in config.groups]
        forms = zip(held, whole.frames, places.frame_bytes, strict=True)
        files = replace(whole, frames=tuple(FrameForm(num, frame.layer, size) for num, frame, size in forms))
        if places.missing:
            lacking = only(files, [segments[idx] for idx in places.missing])
            ground.courier.load(lacking, [places.offsets[idx] for idx in places.missing], ground.pages.dtype, progress)
        offsets = dict(zip(segments, places.offsets, strict=True))
        box: list[CudaDecoder] = []
        ground.done(lambda: box.append(build_decoder(files, offsets, ground.arena, ground.runtime, part.layers)))
        [decoder] = box
        pace = self._warm_up(decoder, part, (min(ground.max_tokens, config.max_positions), config.hidden_size))
        none: list[DeviceRows] = []
        ground.done(lambda: none.append(self._idle(decoder, 1)))
        return CudaStageModel(decoder, ground, tuple(CudaTails(ground, form) for form in files.frames), part, files, none[0], pace)

    def read(self, start: int, target: memoryview) -> None:
        """See `Stage`."""
        ground, host = self._opened(), torch.from_numpy(np.frombuffer(target, dtype=np.uint8))
        ground.copied(lambda: _copy(host, ground.arena.bytes[start : start + len(target)]))

    def write(self, start: int, source: memoryview) -> None:
        """See `Stage`."""
        ground = self._opened()
        host = torch.from_numpy(np.frombuffer(source, dtype=np.uint8).copy())  # pages of the host tier are lent to be read
        ground.copied(lambda: _copy(ground.arena.bytes[start : start + len(source)], host))

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        """See `Stage`."""
        arena = self._opened().arena.bytes
        self._opened().copied(lambda: _copy(arena[target : target + size_bytes], arena[source : source + size_bytes]))

    def zero(self, start: int, size_bytes: int) -> None:
        """See `Stage`."""
        arena = self._opened().arena.bytes
        self._opened().copied(lambda: _clear(arena[start : start + size_bytes]))

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """See `Stage`."""
        self._opened().arena.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        """See `Stage`."""
        self._opened().arena.take(slabs)

    def close(self) -> None:
        """See `Stage`."""
        ground, self._opened_as = self._opened_as, None
        if ground is not None:
            ground.runtime.close()

    def _files(self, part: Part) -> CudaFiles:
        ground = self._opened()
        return open_files(part.source, ground.pages, kv_quants_of(ground.runtime))

    def _idle(self, decoder: CudaDecoder, num_tokens: int) -> DeviceRows:
        runtime, groups = self._opened().runtime, len(decoder.windows)
        tables = tuple(runtime.sent(np.zeros((1, num_tokens), dtype=np.int32)) for _ in range(groups))
        return idle_step(runtime, decoder.heads.num_queries_per_kv, num_tokens, (0, tables))

    def _warm_up(self, decoder: CudaDecoder, part: Part, most: tuple[int, int]) -> float:
        """Have kernels built, and memory for the longest step, `most` being its tokens and their width; answers seconds per token."""
        most_tokens, width = most
        for num_tokens in sizes_of(decoder, most_tokens):
            self._opened().done(lambda num_tokens=num_tokens: self._pass(decoder, part, (num_tokens, width)))  # type: ignore[misc]
        trial = min(TRIAL_TOKENS, most_tokens)
        began = time.perf_counter()
        self._opened().done(lambda: self._pass(decoder, part, (trial, width)))
        return (time.perf_counter() - began) / trial

    def _pass(self, decoder: CudaDecoder, part: Part, shape: tuple[int, int]) -> None:
        step = self._idle(decoder, shape[0])
        given = decoder.first(step) if part.has_ends else torch.zeros(shape, dtype=decoder.dtype, device=step.tokens.device)
        hidden = decoder.run_layers(given, step, part.layers)
        if part.has_ends:
            decoder.logits(hidden[-1:], step)

    def _opened(self) -> CudaGround:
        if self._opened_as is None:
            raise DeviceLost("The driver is not open.")
        return self._opened_as


def _likeliest(logits: Tensor) -> Tensor:
    """The smallest of the likeliest tokens of each row; -1 where logits are not finite."""
    most = logits.max(-1, keepdim=True).values
    ids = torch.arange(logits.shape[-1], device=logits.device)
    smallest = torch.where(logits == most, ids, logits.shape[-1]).min(-1).values
    return torch.where(most.squeeze(-1).isfinite(), smallest, -1)


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _clear(target: Tensor) -> None:
    target.zero_()
