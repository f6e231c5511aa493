"""A model on the device: which kernels run it, its pages, the tables of its rows, and what a load tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import torch

from drivers.contract import InspectSpec, KvGroupSpec, LoadSpec, ModelSpec
from drivers.cpu_shapes import shapes_of
from drivers.cuda.adapters import AdapterSeats
from drivers.cuda.decoder import CudaDecoder
from drivers.cuda.graphs import DecodeGraphs
from drivers.cuda.ops import offers, on_device
from drivers.cuda.runtime import DeviceArena, Runtime
from drivers.cuda.seats import Seats
from drivers.errors import ModelUnsupported, PlanRejected
from drivers.models.checkpoint import read_checkpoint
from drivers.models.config import DecoderConfig
from drivers.models.description import describe
from drivers.models.loader import ModelFiles, PageShape, Target, arrange, model_spec, segment_views
from drivers.models.rotary import inverse_frequencies
from drivers.models.runtime import Runtime as Form
from drivers.models.storage import ALIGN_BYTES
from drivers.ops.fusion import Choice, Cover, borders, fuse
from drivers.rows import GroupLimit, ModelLimit
from drivers.triton.layout import Angles, Heads, KvShape, LayerKv, fixed_chunk

LAYOUT_VERSION = "page-layer-part-head-token.1"  # changes with anything about how a page is laid out or computed
KV_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class FrameForm:
    """A frame of one KV group."""

    num_layers: int
    layer: KvShape
    size_bytes: int  # whole granules


@dataclass(frozen=True, slots=True)
class CudaFiles:
    """A model that was read and found good, and how it would run."""

    files: ModelFiles
    cover: Cover
    frames: tuple[FrameForm, ...]
    pages: PageShape
    kv_quant: str
    fixed_chunk: int = 0  # see `CudaPass`
    borders: tuple[Choice | None, ...] = ()  # see `drivers.ops.fusion.borders`; none: lists are run apart

    @property
    def spec(self) -> ModelSpec:
        """What it needs."""
        told = model_spec(self.files, self.pages)
        pairs = zip(self.files.config.groups, self.frames, strict=True)
        return msgspec.structs.replace(
            told,
            groups=tuple(KvGroupSpec(frame.num_layers, frame.size_bytes, group.window) for group, frame in pairs),
            numerics=f"{LAYOUT_VERSION}/cuda/kv-{self.kv_quant or told.dtype}/fixed-{self.fixed_chunk}/{told.numerics}",
            kv_quant=self.kv_quant,
        )


def open_files(source: InspectSpec, pages: PageShape, kv_quants: Sequence[str], *, is_fixed: bool = False) -> CudaFiles:
    """Read config and headers; `is_fixed`: no bit may depend on the batch. Raises: ModelUnsupported, ModelCorrupt."""
    if source.kv_quant and source.kv_quant not in kv_quants:
        raise ModelUnsupported(f"kv_quant is {source.kv_quant!r}; this device has {', '.join(kv_quants)}, and none ('').")
    checkpoint = read_checkpoint(source)
    if checkpoint.config.foreign is not None:
        raise ModelUnsupported(
            f"{checkpoint.config.architecture} is computed by transformers, which the cuda driver does not do; the cpu driver does."
        )
    found = planned(arrange(checkpoint, Form(pages.dtype, quant=source.quant)), pages, source.kv_quant, is_fixed=is_fixed)
    if found.cover.gaps:
        mode = ", with batch_invariant," if is_fixed else ""
        raise ModelUnsupported(
            f"The cuda driver{mode} has no kernels for some of its ops: {'; '.join(found.cover.gaps)}. The cpu driver runs it."
        )
    return found


def planned(files: ModelFiles, pages: PageShape, kv_quant: str, *, is_fixed: bool = False) -> CudaFiles:
    """How a model would run; its cover may have gaps."""
    shapes = shapes_of(files, pages)
    offered = offers(is_fixed=is_fixed)
    cover = fuse(describe(files.config), offered, lambda idx: shapes[idx])
    chunk = fixed_chunk(files.config.max_positions) if is_fixed else 0
    joined = borders(cover, offered, lambda idx: shapes[idx])
    return CudaFiles(files, cover, frames_of(files.config, pages, kv_quant), pages, kv_quant, chunk, joined)


def frames_of(config: DecoderConfig, pages: PageShape, kv_quant: str) -> tuple[FrameForm, ...]:
    """A frame of each KV group."""
    layer = KvShape(pages.page_tokens, config.num_kv_heads, config.head_dim, KV_DTYPES.get(kv_quant, pages.dtype))
    granule = pages.granule_bytes
    return tuple(
        FrameForm(len(group.layers), layer, -(-len(group.layers) * layer.layer_bytes // granule) * granule) for group in config.groups
    )


@dataclass(frozen=True, slots=True)
class CudaModel:
    """A loaded model. Frozen: a load makes one."""

    decoder: CudaDecoder
    seats: Seats
    graphs: DecodeGraphs
    adapters: AdapterSeats
    limit: ModelLimit
    space_ids: tuple[int, ...]
    frames: tuple[FrameForm, ...]
    places: tuple[tuple[int, int], ...]  # offset and size of each segment


def check_places(files: ModelFiles, spec: LoadSpec, arena_bytes: int) -> None:
    """Whether a load fits the model and the arena. Raises: PlanRejected."""
    if spec.slots or any(offset < 0 for offset in spec.offsets):
        raise PlanRejected(f"Model {spec.model_id}: the cuda driver streams no segments.")
    if len(spec.offsets) != len(files.segments) or len(spec.space_ids) != len(files.config.groups):
        raise PlanRejected(
            f"Model {spec.model_id} has {len(files.segments)} segments and {len(files.config.groups)} KV groups; "
            f"the load names {len(spec.offsets)} offsets and {len(spec.space_ids)} spaces."
        )
    for segment, offset in zip(files.segments, spec.offsets, strict=True):
        if offset % ALIGN_BYTES or offset + segment.size_bytes > arena_bytes:
            raise PlanRejected(f"Segment {segment.name} at offset {offset} is not aligned to {ALIGN_BYTES} or leaves the arena.")


def build_model(found: CudaFiles, spec: LoadSpec, arena: DeviceArena, runtime: Runtime, max_rows: int) -> CudaModel:
    """A model whose weights lie at the offsets of its load, with that many row slots; called as work, and captures nothing yet."""
    files, pages = found.files, found.pages
    config, granule = files.config, pages.granule_bytes
    decoder = build_decoder(found, dict(enumerate(spec.offsets)), arena, runtime)
    seats = Seats(runtime, max_rows, -(-config.max_positions // pages.page_tokens), len(config.groups))
    num_frames = [(arena.bytes.numel() - frame.size_bytes) // granule + 1 for frame in found.frames]
    groups = zip(num_frames, config.groups, strict=True)
    return CudaModel(
        decoder=decoder,
        seats=seats,
        graphs=DecodeGraphs(runtime, decoder, seats, max_rows),
        adapters=AdapterSeats(runtime, config, max_rows, arena, pages.dtype),
        limit=ModelLimit(config.vocab_size, config.max_positions, tuple(GroupLimit(num, group.window) for num, group in groups)),
        space_ids=spec.space_ids,
        frames=found.frames,
        places=tuple((offset, segment.size_bytes) for segment, offset in zip(files.segments, spec.offsets, strict=True)),
    )


def build_decoder(
    found: CudaFiles, offsets: Mapping[int, int], arena: DeviceArena, runtime: Runtime, held: range | None = None
) -> CudaDecoder:
    """What computes a model, or those layers of it that are `held`; its segments lie at `offsets`, the others are not here."""
    files, config = found.files, found.files.config
    target = Target(arena.bytes, tuple(offsets.values()), found.pages.dtype)
    views = {idx: segment_views(files.segments[idx], target, offset) for idx, offset in offsets.items()}
    still = torch.ones(config.max_positions, 1, device=runtime.device)
    return CudaDecoder(
        cover=found.cover,
        segments=tuple({name: on_device(part) for name, part in views.get(idx, {}).items()} for idx in range(len(files.segments))),
        kv=_layer_kv(found, arena, range(config.num_layers) if held is None else held),
        windows=tuple(group.window or 0 for group in config.groups),
        heads=Heads(config.num_heads, config.num_kv_heads, config.head_dim),
        angles=_angles(config, runtime.device),
        still=(still, torch.zeros_like(still)),
        dtype=found.pages.dtype,
        kernels=runtime.kernels,
        fixed_chunk=found.fixed_chunk,
        borders=found.borders,
    )


def only(files: CudaFiles, idxs: Sequence[int]) -> ModelFiles:
    """The same files, of some segments."""
    return replace(files.files, segments=tuple(files.files.segments[idx] for idx in idxs))


def _layer_kv(found: CudaFiles, arena: DeviceArena, held: range) -> tuple[LayerKv, ...]:
    """Where the pages of each layer lie; of one that is not held, nowhere."""
    config, granule = found.files.config, found.pages.granule_bytes
    by_layer = {
        layer: LayerKv(arena.bytes, granule, idx * frame.layer.layer_bytes, frame.layer)
        for group, frame in zip(config.groups, found.frames, strict=True)
        for idx, layer in enumerate(layer for layer in group.layers if layer in held)
    }
    nowhere = LayerKv(arena.bytes[:0], granule, 0, found.frames[0].layer)
    return tuple(by_layer.get(layer, nowhere) for layer in range(config.num_layers))


def _angles(config: DecoderConfig, device: torch.device) -> tuple[Angles, ...]:
    """Cosines and sines of every position, computed once, in float32."""
    tables = []
    for rope in config.rotary:
        frequencies = inverse_frequencies(rope, config.head_dim, config.max_positions)
        angles = torch.arange(config.max_positions).float().unsqueeze(-1) * frequencies
        tables.append(((angles.cos() * rope.attention_factor).to(device), (angles.sin() * rope.attention_factor).to(device)))
    return tuple(tables)
