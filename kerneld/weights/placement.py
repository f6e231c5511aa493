"""Placement: where the weights of a model lie on the device, whole or, where they are too large, streamed through slots.

Room is made by evicting idle pages; how much of a model stays is decided once, by the arena and what pages need at least
(`memory.streaming`), not by who happens to be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from drivers.contract import LoadSpec
from kerneld.errors import Unavailable
from kerneld.models import Model
from memory.config import MemoryConfig
from memory.errors import NeverFits, OutOfFrames
from memory.ledger import Kind
from memory.page import Tier
from memory.pager import Pager
from memory.remedy import size_text
from memory.streaming import LEAST_TOKENS, StreamPlan, enough_bytes, kv_slabs_of, plan_for, plan_of, weight_room, weight_slabs, whole

WEIGHTS_OWNER = "models"
ROOM_TRIES = 3  # rows that run may take what was made free for weights, rather than wait themselves

MakeRoom = Callable[[tuple[int, ...]], Awaitable[None]]


class Placement:
    """Finds room for weights."""

    def __init__(self, memory: MemoryConfig, pager: Pager) -> None:
        self._memory = memory
        self._pager = pager
        self._shelf = pager.weights[Tier.DEVICE]
        self.make_room: MakeRoom = _refuse_room
        self.before_placing: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)  # slabs that were given back come first

    async def place(self, model: Model, *, may_stream: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Room for a model: the offset of each segment, -1 for streamed ones, and of the slots they go through.

        Raises: NeverFits, OutOfFrames, OverLimit, PagingError; nothing is changed but for the room that was made.
        """
        await self.before_placing()
        self.check_room(model, may_stream=may_stream)
        plan = self._plan(model, may_stream=may_stream)
        for _ in range(ROOM_TRIES):
            try:
                return plan.offsets(self._place(model, plan.places))
            except OutOfFrames:
                self._check_share(plan.places)  # pages may not make up for it
                await self.make_room(plan.places)
        return plan.offsets(self._place(model, plan.places))

    def fits(self, places: tuple[int, ...], without: Iterable[str] = ()) -> bool:
        """Whether weights would find room, idle pages evicted, and leave pages theirs, if these models were gone."""
        return self.is_within_share(places, without) and self._pager.could_place(places, without)

    def is_within_share(self, places: tuple[int, ...], without: Iterable[str] = ()) -> bool:
        """Whether weights would leave pages their part of the device, if these models were gone; one that is alone may take all of it."""
        held = self._shelf.held_bytes(without)
        return not held or self._shelf.check_room(places) + held <= weight_room(self._memory)

    def _check_share(self, places: tuple[int, ...]) -> None:
        """Raises: OutOfFrames, NeverFits."""
        if not self.is_within_share(places):
            needed, free = self._shelf.check_room(places), weight_room(self._memory) - self._shelf.held_bytes()
            raise OutOfFrames("device", needed, max(free, 0), self._pager.ledger.holders(Tier.DEVICE))

    def check_room(self, model: Model, *, may_stream: bool) -> None:
        """Whether the device is large enough for a model, were it alone there; for one that is streamed, beside the pages of a context.

        Raises: NeverFits, PagingError.
        """
        plan, memory = self._plan(model, may_stream=may_stream), self._memory
        if plan.streamed:
            weight_bytes, kv_bytes = weight_slabs(memory, plan) * memory.slab_bytes, self._least_slabs(model) * memory.slab_bytes
            total_bytes = memory.device_bytes // memory.slab_bytes * memory.slab_bytes
            if weight_bytes + kv_bytes > total_bytes:
                what = (
                    f"{size_text(weight_bytes)} are for weights, of which most are streamed, and {size_text(kv_bytes)} for the pages of a "
                    f"context of {_least_tokens(model)} tokens. A smaller model, or this one quantized, needs less."
                )
                raise NeverFits("device", weight_bytes + kv_bytes, total_bytes, self._pager.ledger.holders(Tier.DEVICE), what)
        self._shelf.check_room(plan.places)

    def needed_bytes(self, model: Model, *, may_stream: bool) -> int:
        """Bytes of the slabs that a model is given, and beside one that is streamed those of the pages of a context."""
        plan = self._plan(model, may_stream=may_stream)
        if not plan.sizes:
            return 0
        kv_slabs = self._least_slabs(model) if plan.streamed else 0
        return (weight_slabs(self._memory, plan) + kv_slabs) * self._memory.slab_bytes

    def enough_bytes(self, model: Model, kv_slabs: int) -> int:
        """The smallest device on which a model that is streamed leaves pages so many slabs, were it alone there."""
        return enough_bytes(self._memory, model.segment_sizes, self._least_slabs(model), kv_slabs)

    def places(self, model: Model, *, may_stream: bool) -> tuple[int, ...]:
        """Sizes of what a model needs places for."""
        return self._plan(model, may_stream=may_stream).places

    def claim(self, model: Model, kept: LoadSpec) -> None:
        """Take the room where a living worker has a model already. Raises: PagingError, if it is not free."""
        plan = plan_of(model.segment_sizes, kept.offsets, len(kept.slots))
        self._shelf.claim(model.name, WEIGHTS_OWNER, plan.places, plan.starts(kept.offsets, kept.slots), kind_of(model))

    def note_workspace(self, model: Model, size_bytes: int) -> None:
        """A model has so many bytes of the device beyond what is placed there."""
        self._shelf.note_workspace(model.name, size_bytes)

    def release(self, model: Model) -> None:
        """Give the room of a model back."""
        self._shelf.release(model.name)

    def _plan(self, model: Model, *, may_stream: bool) -> StreamPlan:
        sizes = model.segment_sizes
        return plan_for(self._memory, sizes, self._least_slabs(model)) if may_stream and not model.base else whole(sizes)

    def _least_slabs(self, model: Model) -> int:
        frame_bytes = [group.frame_bytes for group in model.spec.groups] if model.spec is not None else []
        return kv_slabs_of(self._memory, frame_bytes, _least_tokens(model))

    def _place(self, model: Model, places: Sequence[int]) -> tuple[int, ...]:
        self._check_share(tuple(places))
        return self._shelf.place(model.name, WEIGHTS_OWNER, tuple(places), kind_of(model))


def _least_tokens(model: Model) -> int:
    return min(model.context_limit(), LEAST_TOKENS)


def kind_of(model: Model) -> Kind:
    """What the bytes of a model's weights are used for."""
    return Kind.ADAPTER if model.base else Kind.WEIGHTS


def _refuse_room(_sizes: tuple[int, ...]) -> asyncio.Future[None]:
    raise Unavailable("The device is not bound yet.")
