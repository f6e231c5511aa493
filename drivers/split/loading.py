"""Weights on their way to the stages of a split device: bundle by bundle from the host tier, part by part from files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from drivers.contract import LoadedModel, LoadSpec
from drivers.copier import Copier
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from drivers.rows import GroupLimit, ModelLimit
from drivers.split.images import Places, bring_bundles
from drivers.split.memory import SplitMemory
from drivers.split.model import SplitModel
from drivers.split.pages import SplitFrame
from drivers.split.plan import SplitPlan
from drivers.split.stage import PartPlaces, StageModel

Progress = Callable[[int, int], None]


class Tiers(NamedTuple):
    """Memory that weights are copied to and from, and who copies."""

    memory: SplitMemory
    host: HostMemory | None  # None: the driver was opened without
    copier: Copier


def load_model(plan: SplitPlan, spec: LoadSpec, tiers: Tiers, progress: Progress) -> tuple[SplitModel, LoadedModel]:
    """Copy a model into place and make it; answers what is told of it too.

    Raises: PlanRejected, if its places do not fit; ModelUnsupported, ModelCorrupt, DeviceOutOfMemory.
    """
    memory, host, copier = tiers
    began = time.perf_counter()
    _check_places(plan, spec, memory)
    missing: Sequence[int] = range(len(plan.bundles))
    if host is not None and spec.host_offsets:
        missing = bring_bundles(Places(plan.sizes, spec.offsets, spec.host_offsets), spec.checksums, memory, host, copier)
    _clear_gaps(plan, spec.offsets, memory)
    parts = _parts(plan, spec, memory, missing, progress)
    told, page_tokens = plan.specs[0].model, plan.page_tokens
    groups = zip(plan.frames, zip(*(part.pages for part in parts), strict=True), strict=True)
    frames = tuple(SplitFrame(num, page_tokens, pages) for num, pages in groups)
    limits = (GroupLimit(memory.num_granules - num + 1, group.window) for num, group in zip(plan.frames, told.groups, strict=True))
    limit = ModelLimit(told.vocab_size, told.max_positions, tuple(limits))
    model = SplitModel(plan, parts, limit, frames, spec.space_ids, spec.offsets)
    seconds = time.perf_counter() - began
    return model, LoadedModel(
        spec.model_id,
        sum(plan.sizes),
        seconds,
        host_bytes=sum(size for idx, size in enumerate(plan.sizes) if idx not in missing),
        copy_s=seconds,
        num_corrupt=len(missing) if spec.host_offsets and host is not None else 0,
        prefill_s=model.prefill_s,
        runs_on=model.runs_on(),
        ops=model.ops(),
    )


def _check_places(plan: SplitPlan, spec: LoadSpec, memory: SplitMemory) -> None:
    granule, num_groups = memory.granule_bytes, len(plan.frames)
    if spec.slots or len(spec.offsets) != len(plan.bundles) or len(spec.space_ids) != num_groups:
        raise PlanRejected(
            f"Model {spec.model_id} has {len(plan.bundles)} segments and {num_groups} KV groups, and streams none; the load names "
            f"{len(spec.offsets)} offsets, {len(spec.space_ids)} spaces and {len(spec.slots)} slots."
        )
    for idx, (offset, size) in enumerate(zip(spec.offsets, plan.sizes, strict=True)):
        if offset < 0 or offset % granule or offset + size > memory.num_granules * granule:
            raise PlanRejected(f"Segment {idx} at offset {offset} is not on a granule of {granule} bytes, or leaves the arena.")


def _clear_gaps(plan: SplitPlan, offsets: Sequence[int], memory: SplitMemory) -> None:
    """Zero what no segment covers: an image of a bundle takes along no bytes of whoever was there before."""
    for bundle, offset in zip(plan.bundles, offsets, strict=True):
        spans = memory.shares.spans(offset // memory.granule_bytes, bundle.num_granules)
        for stage, (start, size), used in zip(memory.stages, spans, bundle.used_bytes, strict=True):
            stage.zero(start + used, size - used)


def _parts(plan: SplitPlan, spec: LoadSpec, memory: SplitMemory, missing: Sequence[int], progress: Progress) -> tuple[StageModel, ...]:
    """Read the bundles `missing` from files, and make the part on each stage."""
    sizes = [sum(part.segment_bytes) for part in plan.specs]
    models: list[StageModel] = []
    try:
        for idx, (stage, part) in enumerate(zip(memory.stages, plan.parts, strict=True)):
            told = partial(_behind, progress, sum(sizes[:idx]), sum(sizes))
            models.append(stage.load(part, _places(plan, spec.offsets, idx, missing), told))
        progress(sum(sizes), sum(sizes))
    except BaseException:
        for model in models:
            model.close()
        raise
    return tuple(models)


def _places(plan: SplitPlan, offsets: Sequence[int], stage: int, missing: Sequence[int]) -> PartPlaces:
    """Where the part of a stage lies there."""
    granule, whole = plan.shares.granule_bytes[stage], plan.shares.total_bytes
    found: list[int] = []  # segments are in the bundles in order
    lacking: list[int] = []
    for idx, (bundle, offset) in enumerate(zip(plan.bundles, offsets, strict=True)):
        for segment, start in bundle.places[stage]:
            found.append(offset // whole * granule + start)
            if idx in missing:
                lacking.append(segment)
    return PartPlaces(tuple(found), tuple(num * granule for num in plan.frames), tuple(lacking))


def _behind(progress: Callable[[int, int], None], before: int, total: int, done: int, _total: int) -> None:
    """Progress of one stage as that of all."""
    progress(before + done, total)
