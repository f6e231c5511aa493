"""A model in the arena of the CPU driver: its weights on their way there, the shape of its pages, and what runs it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from drivers.arena import FrameShape
from drivers.arrival import Arrival, Tiers, bring_weights, check_places
from drivers.contract import InspectSpec, LoadSpec, ModelSpec
from drivers.cpu_ground import Ground
from drivers.cpu_ops import Decision
from drivers.cpu_runners import NativeRunner, Places, Runner, TorchRunner, layer_pages
from drivers.cpu_shapes import Held, frames_of, whole
from drivers.errors import DeviceOutOfMemory
from drivers.models.alone import AloneDecoder
from drivers.models.decoder import Decoder, DecoderWeights
from drivers.models.loader import Target, model_spec
from drivers.models.streaming import SegmentStream
from drivers.ops.ragged import AttentionShape
from drivers.ops.reference import linear
from drivers.rows import GroupLimit, ModelLimit
from drivers.streamed_weights import StreamedWeights, stream_weights
from drivers.tails import ArenaTails

WORKSPACE_TOKENS = 8192  # keys gathered at once: 6 MB of bf16 at the 135M shape


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A loaded model. Frozen: a load makes one, an unload closes and forgets it."""

    runner: Runner
    decision: Decision
    limit: ModelLimit
    space_ids: tuple[int, ...]  # one per KV group
    frames: tuple[FrameShape, ...]
    places: tuple[tuple[int, int], ...] = ()  # offset and size of each segment; -1 of those that are streamed
    tails: tuple[ArenaTails, ...] = ()  # of each KV group, where what lies behind a row's last token has to be zero
    arrival: Arrival = field(default_factory=Arrival)
    streamed: StreamedWeights | None = None

    @property
    def stream(self) -> SegmentStream | None:
        """What brings its layers, if they do not all stay."""
        return self.streamed.stream if self.streamed is not None else None

    @property
    def is_native(self) -> bool:
        """Whether native code runs it."""
        return self.decision.program is not None

    def close(self) -> None:
        """Write nothing to the arena any more."""
        if self.stream is not None:
            self.stream.close()
        self.runner.close()


def inspect_cpu_model(source: InspectSpec, ground: Ground) -> ModelSpec:
    """What a model needs, and what runs it, as far as that changes the bits of its pages. Raises: ModelUnsupported, ModelCorrupt."""
    return told_of(ground.ops.decide(source), ground)


def told_of(decision: Decision, ground: Ground) -> ModelSpec:
    """What is told of a model that was read."""
    spec = model_spec(decision.files, ground.ops.pages)
    if decision.program is not None:
        return msgspec.structs.replace(spec, numerics=f"{spec.numerics}/{ground.ops.engine_name}")
    return msgspec.structs.replace(spec, numerics=f"{spec.numerics}/tiles") if ground.is_batch_invariant else spec


def load_model(decision: Decision, spec: LoadSpec, ground: Ground, progress: Callable[[int, int], None]) -> CpuModel:
    """Copy the weights into place, and warm up.

    Raises: PlanRejected, if the offsets or spaces do not fit the model; ModelCorrupt; ModelUnsupported; StreamBroken.
    """
    files = decision.files
    check_places(files.segments, len(files.config.groups), spec, ground.arena.size_bytes)
    target = Target(ground.arena.bytes, spec.offsets, ground.ops.pages.dtype, ground.copier)
    began = time.perf_counter()
    if not spec.slots:
        parts, arrival = bring_weights(files, target, Tiers(ground.arena, ground.host), spec, progress)
        return _build(decision, spec, ground, (DecoderWeights.of(parts, spec.offsets), None, arrival))
    streamed = stream_weights(files, target, spec, ground.host, progress)
    try:
        return _build(decision, spec, ground, (streamed.weights, streamed, Arrival(copy_s=time.perf_counter() - began)))
    except BaseException:
        streamed.stream.close()
        raise


def _build(decision: Decision, spec: LoadSpec, ground: Ground, loaded: tuple[DecoderWeights, StreamedWeights | None, Arrival]) -> CpuModel:
    weights, streamed, arrival = loaded
    files = decision.files
    config, held = files.config, whole(files, ground.ops.pages)
    frames = frames_of(files, ground.ops.pages, held)
    limits = [
        GroupLimit(ground.arena.num_frames(frame.size_bytes), group.window) for frame, group in zip(frames, config.groups, strict=True)
    ]
    return CpuModel(
        runner=make_runner(decision, ground, weights, spec.offsets, held),
        decision=decision,
        limit=ModelLimit(config.vocab_size, config.max_positions, tuple(limits)),
        space_ids=spec.space_ids,
        frames=frames,
        places=tuple((offset, segment.size_bytes) for segment, offset in zip(files.segments, spec.offsets, strict=True)),
        tails=() if decision.program is not None else tuple(ArenaTails(ground.arena, frame) for frame in frames),
        arrival=arrival,
        streamed=streamed,
    )


def make_runner(
    decision: Decision, ground: Ground, weights: DecoderWeights, offsets: tuple[int, ...], held: Held
) -> NativeRunner | TorchRunner:
    """What computes the layers that are held here. `offsets`: of each segment, -1 of streamed ones, anything of those that are not here.

    Raises: DeviceOutOfMemory, ModelUnsupported.
    """
    program = ground.ops.program_of(decision, held)
    if program is None or ground.ops.engine is None:
        return _in_torch(decision, ground, weights, held)
    address = np.uint64(ground.arena.bytes.data_ptr())
    places = Places(address, offsets, ground.max_tokens, ground.ops.pages.dtype is torch.bfloat16)
    try:
        return NativeRunner(ground.ops.engine, program, weights, ground.arena, places, draws=decision.draws)
    except MemoryError as error:
        size_bytes = ground.max_tokens * program.hidden_size * 4
        raise DeviceOutOfMemory(size_bytes, 0, f"{error} Lower kerneld.max_step_tokens.") from error


def _in_torch(decision: Decision, ground: Ground, weights: DecoderWeights, held: Held) -> TorchRunner:
    config, pages = decision.files.config, ground.ops.pages
    frames, groups = frames_of(decision.files, pages, held), tuple(held.of(group) for group in config.groups)
    kv, ops = layer_pages(config, ground.arena, frames, groups), (decision.cover, decision.table)
    if config.foreign is not None:
        from drivers.models.foreign.decoder import make_decoder  # heavy, and may be missing

        decoder: Decoder = make_decoder(config, Path(decision.source.path), (weights, kv), ops)
    else:
        decoder = Decoder(config, weights, kv, ops)
        _warm_up(decoder, held.layers.start)
    workspace_tokens = -(-WORKSPACE_TOKENS // pages.page_tokens) * pages.page_tokens
    workspace = torch.zeros(workspace_tokens, 2, config.num_kv_heads, config.head_dim, dtype=pages.dtype)
    attention = [AttentionShape(pages.page_tokens, group.window, workspace) for group in config.groups]
    alone = AloneDecoder.of(decoder, held.layers.start) if ground.is_batch_invariant else None
    return TorchRunner(decoder, (frames, groups), attention, alone)


def _warm_up(decoder: Decoder, first: int) -> None:
    """Have the library build its kernels for this model's linears now: all layers have the shapes of the first that is here."""
    layer, dtype = next(itertools.islice(decoder.weights.layers, first, None)), decoder.dtype
    for name, weight in layer.parts.items():
        if name.endswith(".weight") and isinstance(weight, Tensor):
            linear(torch.zeros(1, weight.shape[1], dtype=dtype), weight, None)
    if decoder.weights.last:
        decoder.logits(torch.zeros(1, decoder.config.hidden_size, dtype=dtype))
