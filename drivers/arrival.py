"""Weights on their way into an arena of host memory: from the host tier where it has them, from files where it has not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from drivers.arena import Arena
from drivers.contract import LoadSpec
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from drivers.models.layout import Segment
from drivers.models.loader import ModelFiles, Target, load_weights, segment_views
from drivers.models.storage import ALIGN_BYTES
from drivers.models.weight import Weight
from drivers.weight_image import bring_segments

Parts = tuple[dict[str, Tensor | Weight], ...]  # of each segment, by name


@dataclass(frozen=True, slots=True)
class Arrival:
    """How the weights of a model came."""

    host_bytes: int = 0  # from the host tier
    copy_s: float = 0.0
    num_corrupt: int = 0  # segments whose image did not hold


class Tiers(NamedTuple):
    """Memory that weights are copied to and from."""

    arena: Arena
    host: HostMemory | None  # None: the driver was opened without


def bring_weights(
    files: ModelFiles, target: Target, tiers: Tiers, spec: LoadSpec, progress: Callable[[int, int], None]
) -> tuple[Parts, Arrival]:
    """Copy the segments of `files` to `target`, which lies in the arena; answers the parts of each by name, and how they came.

    Raises: ModelCorrupt, ModelUnsupported; PlanRejected, if an image leaves the host tier. The target is then half written.
    """
    began = time.perf_counter()
    if not spec.host_offsets or tiers.host is None:
        views = load_weights(files, target, progress)
        return views, Arrival(copy_s=time.perf_counter() - began)
    sizes = [segment.size_bytes for segment in files.segments]
    bad = bring_segments(tiers.arena, tiers.host, spec, sizes, (target.copier, progress))
    if bad:
        again = replace(files, segments=tuple(files.segments[idx] for idx in bad))
        load_weights(again, replace(target, offsets=tuple(spec.offsets[idx] for idx in bad)), lambda _done, _total: None)
    views = tuple(segment_views(segment, target, offset) for segment, offset in zip(files.segments, spec.offsets, strict=True))
    return views, Arrival(sum(sizes) - sum(sizes[idx] for idx in bad), time.perf_counter() - began, len(bad))


def check_places(segments: Sequence[Segment], num_groups: int, spec: LoadSpec, arena_bytes: int) -> None:
    """Whether the places of a load fit its model and the arena. Raises: PlanRejected."""
    if len(spec.offsets) != len(segments) or len(spec.space_ids) != num_groups:
        raise PlanRejected(
            f"Model {spec.model_id} has {len(segments)} segments and {num_groups} KV groups; "
            f"the load names {len(spec.offsets)} offsets and {len(spec.space_ids)} spaces."
        )
    streamed = [segment for segment, offset in zip(segments, spec.offsets, strict=True) if offset < 0]
    if bool(streamed) != bool(spec.slots) or spec.offsets[0] < 0 or spec.offsets[-1] < 0:
        raise PlanRejected(f"Model {spec.model_id}: slots are for streamed segments, which the first and the last cannot be.")
    places = [(segment, offset) for segment, offset in zip(segments, spec.offsets, strict=True) if offset >= 0]
    if streamed:
        largest = max(streamed, key=lambda segment: segment.size_bytes)
        places += [(largest, slot) for slot in spec.slots]
    for segment, offset in places:
        if offset % ALIGN_BYTES or offset < 0 or offset + segment.size_bytes > arena_bytes:
            raise PlanRejected(f"Segment {segment.name} at offset {offset} is not aligned to {ALIGN_BYTES} or leaves the arena.")
