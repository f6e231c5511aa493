"""What the split driver asks of a device: memory of its own, and some layers of each model over it.

A stage knows nothing of other stages, of rows between steps, or of the host tier. Bytes are named by where they lie in its own memory.
Every method blocks until what it asks for has happened; hidden states `[num_tokens, hidden] f32` come and go in host memory, and a stage
turns them into the dtype that it computes in. Errors are those of `drivers.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from drivers.contract import Capabilities, InspectSpec, ModelSpec, OpenSpec, OpReport
from drivers.rows import StepRows
from drivers.sampling import Asked, Pick
from drivers.tails import PageTails

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of a model: some layers and, on the first stage, its ends: the embedding, the last norm, and the head."""

    source: InspectSpec
    layers: range
    has_ends: bool

    def segments(self, num_layers: int) -> tuple[int, ...]:
        """Which of the model's segments (the first, one for each layer, the last) those are."""
        layers = tuple(layer + 1 for layer in self.layers)
        return (0, *layers, num_layers + 1) if self.has_ends else layers


@dataclass(frozen=True, slots=True)
class PartSpec:
    """What a part needs of a stage."""

    model: ModelSpec  # the whole model, as the stage would run it alone
    segment_bytes: tuple[int, ...]  # of each of its segments, whole units of 64
    page_bytes: tuple[int, ...]  # of each KV group: what the part's layers take of a page


@dataclass(frozen=True, slots=True)
class PartPlaces:
    """Where a part lies in the memory of a stage."""

    offsets: tuple[int, ...]  # of each of its segments
    frame_bytes: tuple[int, ...]  # of each KV group: frame f begins at f granules
    missing: Sequence[int]  # of its segments, those whose bytes are not there yet and come from files


class StageModel(Protocol):
    """A part of a model on a stage."""

    @property
    def pages(self) -> tuple[PageTails, ...]:
        """Its part of the pages of each KV group; good when the model is unloaded too."""

    @property
    def prefill_s(self) -> float:
        """Seconds per token of a short input through the part, as it was tried; 0: it is not known."""

    @property
    def needs_clean_pages(self) -> bool:
        """Whether what lies behind a row's last token in its page has to be zero (`drivers.tails`)."""

    def run_layers(self, share: StepRows, hidden: Tensor | None) -> Tensor:
        """Compute the part's layers and write their keys and values, from hidden states that are not used again; None: from tokens."""

    def logits(self, hidden: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits `[n, vocab] f32` behind those tokens of the step; asked of a part that has the ends."""

    def draw(self, hidden: Tensor, tokens: Sequence[int], asked: Sequence[Asked]) -> list[Pick] | None:
        """See `drivers.stepping.Head`; asked of a part that has the ends."""

    def ops(self) -> tuple[OpReport, ...]:
        """What runs each op."""

    def runs_on(self) -> str:
        """What computes it, in a few words."""

    def close(self) -> None:
        """Forget what is kept beyond the arena. Safe to call twice."""


class Stage(Protocol):
    """One device of a split one."""

    def probe(self) -> Capabilities:
        """What the device offers, as its own driver says. Raises: DriverUnavailable."""

    def open(self, spec: OpenSpec) -> None:
        """Take memory in granules of its own, without a host tier. Raises: DeviceOutOfMemory, OptionUnknown, PlanRejected."""

    def inspect(self, part: Part) -> PartSpec:
        """What a part of a model needs. Raises: ModelUnsupported, ModelCorrupt."""

    def load(self, part: Part, places: PartPlaces, progress: Progress) -> StageModel:
        """Read what is missing from files, and make ready to run. Raises: ModelUnsupported, ModelCorrupt, DeviceOutOfMemory."""

    def read(self, start: int, target: memoryview) -> None:
        """Copy bytes of its memory to the host."""

    def write(self, start: int, source: memoryview) -> None:
        """Copy bytes of the host to its memory."""

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        """Copy within its memory."""

    def zero(self, start: int, size_bytes: int) -> None:
        """Fill with zeros."""

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """See `drivers.contract.Driver.give_back`."""

    def take(self, slabs: tuple[int, ...]) -> None:
        """See `drivers.contract.Driver.take`."""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
