"""A driver of one's own, in about a hundred lines: a bag of words that forgets.

It runs any Llama-like directory on the host CPU, of which it uses the two tables alone. What it keeps of a token is its embedding row, in
the frames that the kernel names; what a row says next is

    logits = head @ sum of (0.7 ** age) * embedding[token]     over all tokens of the row, read back through its page table

That is no language model worth the name. All the rest is real: pages, moves to the host tier, chunks, batches, draws, scores, parking.
`python -P -m drivers.conformance bag` holds it to the contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from drivers.arena import Arena, FrameShape, device_bytes
from drivers.contract import (
    Capabilities,
    CopyTimes,
    InspectSpec,
    KvGroupSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    OpReport,
    Plan,
    RowResult,
    StepResult,
)
from drivers.copier import Copier
from drivers.errors import DeviceLost, ModelUnsupported, OptionUnknown, PlanRejected, UnknownModel
from drivers.hostmem import HostMemory
from drivers.models.loader import ModelFiles, PageShape, Target, load_weights, model_spec, open_model, segment_views
from drivers.ops.table import OpTable
from drivers.pages import PageMover
from drivers.plan_check import check_rows
from drivers.rows import GroupLimit, ModelLimit, RowState, RowTable, StepRows
from drivers.sampling import NOT_FINITE, pick_tokens, token_logprobs
from drivers.weight_image import bring_segments, park_segments

VERSION = "1.0"
FADING = 0.7


@dataclass(frozen=True, slots=True)
class Bag:
    """A loaded model."""

    embedding: Tensor  # [vocab, hidden]
    head: Tensor  # [vocab, hidden]
    pages: Tensor  # [frames, page_tokens, hidden], all of the arena
    places: tuple[tuple[int, int], ...]  # offset and size of each segment
    space_ids: tuple[int, ...]
    limit: ModelLimit

    def logits(self, table: Tensor, num_tokens: int) -> Tensor:
        """What follows the first so many tokens of a row. The same sum in the same order, whoever else is in the step."""
        num_pages = -(-num_tokens // self.pages.shape[1])
        rows = self.pages[table[:num_pages]].flatten(0, 1)[:num_tokens]
        return self.head @ (rows * FADING ** torch.arange(num_tokens - 1, -1, -1).unsqueeze(1)).sum(0)


class BagDriver:
    """See `drivers.contract.Driver`."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._host: HostMemory | None = None
        self._models: dict[int, Bag] = {}  # replaced, never changed: a load in another thread is seen by steps wholly or not at all
        self._frames: dict[int, FrameShape] = {}  # by space; pages of a model may stay behind when it is unloaded

    def probe(self) -> Capabilities:
        return Capabilities("bag", VERSION, "a bag in host memory", device_bytes(), ("float32",), batch_invariant=True, gives_back=True)

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        if spec.options or spec.dtype != "float32":
            raise OptionUnknown(f"The bag driver has no options ({', '.join(spec.options)}) and computes in float32, not {spec.dtype}.")
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._shape = PageShape(spec.page_tokens, spec.granule_bytes, torch.float32)
        self._arena = Arena(spec.num_slabs * spec.slab_bytes, spec.granule_bytes, spec.slab_bytes)
        if host_fd is not None and spec.host_bytes:
            self._host = HostMemory(host_fd, spec.host_bytes, spec.granule_bytes)
        self._mover = PageMover(self._arena, self._host, OpTable())
        self._rows = RowTable(spec.max_rows, spec.max_step_tokens, spec.page_tokens)

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        return self._told(_open_tables(spec))

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        began = time.monotonic()
        arena, files = self._opened(), _open_tables(spec.source)
        told = self._told(files)
        if spec.model_id in self._models or len(spec.offsets) != len(told.segments) or min(spec.offsets) < 0:
            raise PlanRejected(f"Model {spec.model_id} is loaded already, or its {len(told.segments)} segments have no places.")
        target = Target(arena.bytes, spec.offsets, torch.float32)
        sizes = [segment.size_bytes for segment in told.segments]
        unread = list(range(len(sizes)))
        if spec.host_offsets and self._host is not None:  # images whose checksum does not hold are read again
            unread = bring_segments(arena, self._host, spec, sizes, (Copier(), progress))
        part = replace(files, segments=tuple(files.segments[idx] for idx in unread))
        tell = progress if len(unread) == len(sizes) else _tell_nobody
        load_weights(part, replace(target, offsets=tuple(spec.offsets[idx] for idx in unread)), tell)
        views = [segment_views(segment, target, offset) for segment, offset in zip(files.segments, spec.offsets, strict=True)]
        shape = FrameShape(1, self._shape.page_tokens, 1, files.config.hidden_size // 2, told.groups[0].frame_bytes, torch.float32)
        limit = ModelLimit(told.vocab_size, told.max_positions, (GroupLimit(arena.num_frames(shape.size_bytes)),))
        embedding, pages = views[0]["embedding"], arena.token_views(shape)[0][:, 0, 0]
        places = tuple(zip(spec.offsets, sizes, strict=True))
        bag = Bag(embedding, views[-1].get("head", embedding), pages, places, spec.space_ids, limit)
        self._frames = {**self._frames, **dict.fromkeys(spec.space_ids, shape)}
        self._models = {**self._models, spec.model_id: bag}
        host_bytes = sum(sizes) - sum(sizes[idx] for idx in unread)
        num_corrupt = len(unread) if spec.host_offsets else 0
        ops = (OpReport("bag", "bag.sum", num_calls=1, why="there is no other"),)
        seconds = time.monotonic() - began
        return LoadedModel(
            spec.model_id, sum(sizes), seconds, host_bytes=host_bytes, num_corrupt=num_corrupt, runs_on="a bag of words", ops=ops
        )

    def unload(self, model_id: int) -> None:
        self._model(model_id)
        self._models = {other: bag for other, bag in self._models.items() if other != model_id}

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        arena, bag = self._opened(), self._model(model_id)
        if self._host is None:
            raise PlanRejected("The driver was opened without a host tier.")
        return park_segments(arena, self._host, bag.places, host_offsets, Copier())

    def give_back(self, slabs: tuple[int, ...]) -> None:
        self._opened().memory.give_back(slabs)

    def take(self, slabs: tuple[int, ...]) -> None:
        self._opened().memory.take(slabs)

    def apply(self, plan: Plan) -> None:
        self._mover.check(plan, self._frames)  # all that can be wrong is found before anything is changed
        check_rows(plan, self._rows, {model_id: bag.limit for model_id, bag in self._models.items()})
        self._mover.carry_out(plan, self._frames)
        self._rows.apply(plan)

    def copied(self) -> CopyTimes:
        return self._mover.copied()

    def step(self, step_idx: int) -> StepResult:
        began = time.monotonic()
        shares = self._rows.take(step_idx)
        results = [self._compute(self._models[share.model_id], share, idx) for share in shares for idx in range(len(share.rows))]
        return StepResult(tuple(results), time.monotonic() - began, sum(len(share.tokens) for share in shares))

    def close(self) -> None:
        self._models, self._frames = {}, {}
        if self._host is not None:
            self._host.close()
        if self._arena is not None:
            self._arena.close()
        self._arena = self._host = None

    def _compute(self, bag: Bag, share: StepRows, idx: int) -> RowResult:
        """Keep a row's tokens of this step in its frames; then sample, or score, or rest where a prefill goes on."""
        row, count, first = share.rows[idx], share.counts[idx], share.starts[idx]
        table, begin = torch.from_numpy(row.tables[0]), row.position
        positions = torch.arange(begin, begin + count)
        places = table[positions // self._shape.page_tokens], positions % self._shape.page_tokens
        bag.pages[places] = bag.embedding[torch.from_numpy(share.tokens[first : first + count])]
        if not share.samples(idx):
            start, targets = share.scored(idx)
            ends = range(begin + start - first + 1, begin + start - first + 1 + len(targets))
            self._rows.advance(row, count)
            if not targets:
                return RowResult(row.slot)
            logits = torch.stack([bag.logits(table, end) for end in ends])
            return RowResult(row.slot, logprobs=tuple(token_logprobs(logits, targets, [max(0, row.sampling.num_logprobs)] * len(targets))))
        self._rows.advance(row, count)
        pick = pick_tokens(bag.logits(table, begin + count).unsqueeze(0), [row], OpTable().sample)[0]
        if pick.token < 0:
            self._rows.fail(row)
            return RowResult(row.slot, error=NOT_FINITE)
        tokens = self._rows.accept(row, (pick.token,))
        return RowResult(row.slot, tokens, (pick.logprob,) if pick.logprob else (), is_stopped=row.state is RowState.STOPPED)

    def _told(self, files: ModelFiles) -> ModelSpec:
        """What the tables and the pages of a model need."""
        told, granule = model_spec(files, self._shape), self._shape.granule_bytes
        used = self._shape.page_tokens * files.config.hidden_size * torch.float32.itemsize
        group = KvGroupSpec(num_layers=1, frame_bytes=-(-used // granule) * granule)
        return msgspec.structs.replace(told, groups=(group,), numerics=f"bag {VERSION}/{FADING}/{self._shape.page_tokens}")

    def _opened(self) -> Arena:
        if self._arena is None:
            raise DeviceLost("The driver is not open.")
        return self._arena

    def _model(self, model_id: int) -> Bag:
        if model_id not in self._models:
            raise UnknownModel(f"It has id {model_id}.")
        return self._models[model_id]


def _open_tables(spec: InspectSpec) -> ModelFiles:
    """The first and the last segment of a model: the embedding, and the head. Raises: ModelUnsupported, ModelCorrupt."""
    if spec.base or spec.quant or spec.kv_quant:
        raise ModelUnsupported("The bag driver knows no adapters and quantizes nothing; leave base, quant and kv_quant out.")
    files = open_model(spec, torch.float32)
    if files.quant or files.config.hidden_size % 2:
        raise ModelUnsupported("The bag driver reads float weights, and rows of an even number of columns.")
    return replace(files, segments=(files.segments[0], files.segments[-1]))


def _tell_nobody(_done: int, _total: int) -> None:
    """Progress of what is read a second time."""
