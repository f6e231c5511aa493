"""Room for models: what a small device is asked for, and what is said where it is too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.contract import KvGroupSpec, ModelSpec, SegmentSpec
from kerneld.models import Model
from kerneld.remedies import Needer, remedies_of
from kerneld.weights.placement import Placement
from memory.config import MemoryConfig
from memory.errors import NeverFits
from memory.pager import Pager
from memory.remedy import Action
from tests.kerneld.rig import SLAB, Rig, Sizes, in_loop, prompt_of, running

MIB = 1 << 20
SEGMENTS = (4 * MIB, *([3 * MIB] * 6), 4096)  # as the shipped model's


def model_of(max_positions: int = 1024, frame_bytes: int = 96 << 10) -> Model:
    spec = ModelSpec(
        architecture="LlamaForCausalLM",
        dtype="float32",
        vocab_size=4096,
        max_positions=max_positions,
        num_parameters=1,
        segments=tuple(SegmentSpec(str(idx), size) for idx, size in enumerate(SEGMENTS)),
        groups=(KvGroupSpec(6, frame_bytes),),
        bos_token_id=None,
        eos_token_ids=(),
        numerics="",
    )
    return Model(
        name="m",
        path="",
        max_positions=0,
        quant="",
        kv_quant="",
        weights_hash="",
        registered_by="",
        tokenizer=None,
        template=None,
        spec=spec,
    )


def placement_of(device_bytes: int) -> Placement:
    memory = MemoryConfig(device_bytes=device_bytes, host_bytes=0)
    return Placement(memory, Pager(memory))


def test_a_model_that_leaves_no_context_room_is_refused_with_what_would_be_enough() -> None:
    with pytest.raises(NeverFits, match=r"needs 16 MiB .* 12 MiB at most\. 12 MiB are for weights.* 4 MiB for .* of 256 tokens") as refused:
        placement_of(12 * MIB).check_room(model_of(), may_stream=True)

    assert refused.value.needed_bytes == 16 * MIB
    placement_of(16 * MIB).check_room(model_of(), may_stream=True)
    assert placement_of(12 * MIB).needed_bytes(model_of(), may_stream=True) == 16 * MIB
    assert placement_of(12 * MIB).needed_bytes(model_of(), may_stream=False) == 24 * MIB


def test_a_model_of_short_contexts_needs_room_for_no_longer_one() -> None:
    large_pages = 2 * MIB  # of sixteen tokens
    assert placement_of(12 * MIB).needed_bytes(model_of(256, large_pages), may_stream=True) == (12 + 32) * MIB
    assert placement_of(12 * MIB).needed_bytes(model_of(32, large_pages), may_stream=True) == (12 + 4) * MIB


def test_a_larger_device_is_said_to_be_as_large_as_the_model_leaves_room_on() -> None:
    kv_slabs = 16
    enough = placement_of(16 * MIB).enough_bytes(model_of(), kv_slabs) // (4 * MIB)
    assert enough == 6 + kv_slabs, "all of it stays on a device of that size"


@in_loop
async def test_where_weights_fill_the_device_a_larger_one_would_help_and_no_limit_that_nobody_has(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=1))) as rig:
        context = await rig.alloc()
        with pytest.raises(NeverFits, match=r"What would help: give the device tier 8 KiB \(memory.device_bytes\)"):
            await rig.infer(context, prompt_of(1, 9))


@in_loop
async def test_for_a_model_that_is_too_large_alone_no_other_one_is_to_leave(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=4))) as rig:
        device = rig.machine.devices.first
        [first] = remedies_of(device, NeverFits("device", 6 * SLAB, 4 * SLAB, ()), Needer())
        beside, *_ = remedies_of(device, NeverFits("device", 4 * SLAB, 3 * SLAB, ()), Needer())
    assert (first.action, first.size_bytes) == (Action.ENLARGE, 6 * SLAB)
    assert (beside.action, beside.subject) == (Action.UNLOAD, "m")
