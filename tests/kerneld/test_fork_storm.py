"""A storm of forks: a thousand contexts of one, on tiers that could not hold a tenth of them apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kerneld.calls import ForkArgs
from memory.page import Tier
from tests.kerneld.rig import ANN, PAGE_TOKENS, Rig, Sizes, in_loop, oracle, prompt_of, running

FORKS = 1000
GOING_ON = 250  # of the forks
TOKENS = 100
SMALL = Sizes(device_slabs=6, host_slabs=4, disk_slabs=32)  # a context has 25 pages; device: 80


@in_loop
async def test_a_thousand_forks_cost_their_own_tokens_alone(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, TOKENS - 4), 4)
        await rig.settle()
        ledger = rig.machine.devices.first.pager.ledger
        before = {tier: ledger.used("lab/ann", tier) for tier in Tier}

        children = [(await rig.kernel.fork(ANN, ForkArgs(parent))).id for _ in range(FORKS)]

        assert {tier: ledger.used("lab/ann", tier) for tier in Tier} == before
        counts = rig.stat(parent).pages
        assert counts.shared == TOKENS // PAGE_TOKENS

        outputs = await asyncio.gather(*(rig.infer(child, prompt_of(2 + seed, 3), 2) for seed, child in enumerate(children[:GOING_ON])))

        expected = [oracle([*rig.tokens(parent), *prompt_of(2 + seed, 3)], 2) for seed in range(GOING_ON)]
        assert [output.tokens for output in outputs] == expected
        for child in children:
            await rig.kernel.free(ANN, child)
        await rig.settle()
        rig.machine.devices.first.pager.check_integrity()
        assert rig.stat(parent).pages.shared == 0
