"""Nothing of a tenant is left behind: canaries are looked for in every byte of the arena, the host tier and the page file.

The canaries are the fake driver's own witnesses, 16 bytes for each token computed, which no other tenant's tokens can produce.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, BOB, GRANULE, Rig, Sizes, in_loop, prompt_of, running

CANARY = 16
# Device: 80 pages, host: 32, disk: 256. A context of 100 tokens has 25.
SMALL = Sizes(device_slabs=6, host_slabs=4, disk_slabs=32)


def arena_of(rig: Rig) -> bytes:
    assert rig.worker is not None
    device = rig.worker.driver._device
    assert device is not None
    return device.memory.arena.tobytes()


def tiers(rig: Rig) -> dict[Tier, bytes]:
    """Every byte of every tier."""
    assert rig.worker is not None
    assert rig.worker.host_fd is not None
    host = os.pread(rig.worker.host_fd, os.fstat(rig.worker.host_fd).st_size, 0)
    return {Tier.DEVICE: arena_of(rig), Tier.HOST: host, Tier.DISK: (rig.state / "pages").read_bytes()}


def records(content: bytes) -> set[bytes]:
    """Every aligned 16 bytes that are not zeros. Headers are whole records, and so are file heads: witnesses keep their alignment."""
    words = np.frombuffer(content[: len(content) // CANARY * CANARY], dtype=f"V{CANARY}")
    return set(words.tolist()) - {bytes(CANARY)}


def canaries_of(rig: Rig, context_id: str) -> set[bytes]:
    """The witnesses in a context's device frames."""
    context = rig.machine.contexts.find(context_id)
    assert context is not None
    assert context.table is not None
    arena = arena_of(rig)
    page_bytes = context.table.spaces[0].device_frame_bytes
    starts = [page.device_frame * GRANULE for page in context.table.pages[0] if page.device_frame is not None]
    return set().union(*(records(arena[start : start + page_bytes]) for start in starts))


async def everything_moved(rig: Rig) -> None:
    """Let plans, transfers and zeroing end."""
    tier = rig.machine.devices.first.disk_tier
    assert tier is not None
    for _ in range(4):
        await rig.settle()
        tier.reclaimer.now()
        await rig.until(lambda: tier.mover.is_idle)


async def fill_all_tiers(rig: Rig, num_contexts: int = 8) -> tuple[list[str], set[bytes]]:
    """Contexts of ann's that no two tiers could hold, and what to look for."""
    contexts, canaries = [], set[bytes]()
    for seed in range(num_contexts):
        contexts.append(await rig.alloc())
        await rig.infer(contexts[-1], prompt_of(seed, 96), 4)
        canaries |= canaries_of(rig, contexts[-1])
        await everything_moved(rig)
    return contexts, canaries


@in_loop
async def test_a_removed_tenant_leaves_no_byte_in_any_tier(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        _contexts, canaries = await fill_all_tiers(rig)
        there = {tier: len(records(content) & canaries) for tier, content in tiers(rig).items()}
        assert all(there.values()), there  # the search finds what is there

        await rig.kernel.remove_tenant(ADMIN, "lab/ann", True)
        await everything_moved(rig)

        left = {tier: len(records(content) & canaries) for tier, content in tiers(rig).items()}
        assert not any(left.values()), left


@in_loop
async def test_frames_that_change_hands_carry_nothing_over(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        contexts, canaries = await fill_all_tiers(rig)
        for context in contexts:
            await rig.kernel.free(ANN, context)
        for seed in range(20, 28):  # bob takes all that ann had
            context = await rig.alloc(BOB)
            await rig.infer(context, prompt_of(seed, 96), 4, caller=BOB)
            found = canaries_of(rig, context)
            assert found, "bob's own witnesses are there"
            assert not found & canaries
            await everything_moved(rig)

        assert rig.machine.devices.first.pager.ledger.used("lab/ann", Tier.DISK) == 0
        assert not records((rig.state / "pages").read_bytes()) & canaries  # what is given up on disk is gone at once
