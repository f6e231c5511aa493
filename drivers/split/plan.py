"""How a model is to lie on a split device: which layers on which stage, in which bundles, with frames of how many granules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from drivers.contract import InspectSpec, KvGroupSpec, ModelSpec, SegmentSpec
from drivers.errors import ModelUnsupported
from drivers.models.checkpoint import read_checkpoint
from drivers.split.bundles import Bundle, packed
from drivers.split.shares import Shares
from drivers.split.stage import Part, PartSpec, Stage

MOST_WASTE = 3  # times the bytes of its weights that a model may take


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How a model is to lie."""

    parts: tuple[Part, ...]  # by stage
    specs: tuple[PartSpec, ...]
    bundles: tuple[Bundle, ...]
    frames: tuple[int, ...]  # granules, of each KV group
    page_tokens: int
    shares: Shares

    @property
    def told(self) -> ModelSpec:
        """What the front is told of it."""
        whole, granule = self.specs[0].model, self.shares.total_bytes
        layers = "+".join(str(len(part.layers)) for part in self.parts)
        shares = "+".join(map(str, self.shares.granule_bytes))
        groups = zip(whole.groups, self.frames, strict=True)
        return msgspec.structs.replace(
            whole,
            segments=tuple(SegmentSpec(f"bundle.{idx}", each.num_granules * granule) for idx, each in enumerate(self.bundles)),
            groups=tuple(KvGroupSpec(group.num_layers, num * granule, group.window) for group, num in groups),
            numerics=f"split {layers} of {shares}: {' | '.join(spec.model.numerics for spec in self.specs)}",
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each bundle."""
        return tuple(bundle.num_granules * self.shares.total_bytes for bundle in self.bundles)


def plan_of(source: InspectSpec, stages: Sequence[Stage], shares: Shares, page_tokens: int) -> SplitPlan:
    """Share the layers of a model out. Raises: ModelUnsupported, ModelCorrupt."""
    if source.base:
        raise ModelUnsupported("A split device runs no adapters; load the base and its adapter on a device of one part.")
    config = read_checkpoint(source).config
    if config.num_layers < len(stages):
        raise ModelUnsupported(f"It has {config.num_layers} layers, fewer than the {len(stages)} parts of this device.")
    parts = tuple(Part(source, layers, idx == 0) for idx, layers in enumerate(shares.layers(config.num_layers)))
    specs = tuple(stage.inspect(part) for stage, part in zip(stages, parts, strict=True))
    frames = tuple(max(1, shares.num_granules(sizes)) for sizes in zip(*(spec.page_bytes for spec in specs), strict=True))
    plan = SplitPlan(parts, specs, packed([spec.segment_bytes for spec in specs], shares), frames, page_tokens, shares)
    _check_waste(plan)
    return plan


def _check_waste(plan: SplitPlan) -> None:
    """Whether shares are near enough to what the parts need. Raises: ModelUnsupported."""
    needed, taken = [sum(spec.segment_bytes) for spec in plan.specs], sum(plan.sizes)
    if taken > MOST_WASTE * sum(needed):
        fitting = ",".join(str(max(1, round(100 * size / sum(needed)))) for size in needed)
        raise ModelUnsupported(
            f"Its weights are {sum(needed)} bytes and would take {taken}: the parts of this device are too unlike what they hold of it. "
            f'Shares near "{fitting}" fit it (drivers.options, shares), or a device of one part.'
        )
