"""Identities: the ids by which the device knows a model and its KV groups, given the first time that it is looked at.

Invariants
1. A model keeps its ids as long as its name lives, and no other ever gets them: they hold the boot generation, so that a worker or a page
   that outlived an earlier front knows others.
2. A model has an identity if and only if its spaces are open in the pager.
"""

from __future__ import annotations

from drivers.contract import LoadSpec, ModelSpec
from drivers.hostmem import host_frame_bytes
from kerneld.models import Model, fingerprint_of
from memory.config import MemoryConfig
from memory.page import Space
from memory.pager import Pager

IDS_PER_BOOT = 1 << 20


class Identities:
    """Gives models their ids, and opens their spaces."""

    def __init__(self, memory: MemoryConfig, pager: Pager, boot_generation: int) -> None:
        self._memory = memory
        self._pager = pager
        self._next_model_id = self._next_space_id = boot_generation * IDS_PER_BOOT  # invariant 1

    def give(self, model: Model, spec: ModelSpec, kept: LoadSpec | None = None) -> None:
        """Give a model its ids, or those under which a worker kept its weights; one that has some keeps them."""
        if model.model_id:
            return
        ids = kept.space_ids if kept is not None else self._new_space_ids(len(spec.groups))
        model.model_id = kept.model_id if kept is not None else self._next_model_id
        self._next_model_id += kept is None
        model.fingerprint = fingerprint_of(model.weights_hash, spec, self._memory.page_tokens)
        page_tokens, granule = self._memory.page_tokens, self._memory.granule_bytes
        model.spaces = tuple(
            Space(space_id, page_tokens, group.frame_bytes, host_frame_bytes(group.frame_bytes, granule), group.window)
            for space_id, group in zip(ids, spec.groups, strict=True)
        )
        for space in model.spaces:
            self._pager.open_space(space)

    def _new_space_ids(self, count: int) -> tuple[int, ...]:
        first, self._next_space_id = self._next_space_id, self._next_space_id + count
        return tuple(range(first, first + count))
