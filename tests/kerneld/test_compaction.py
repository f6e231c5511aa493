"""Pages that move together under running rows: the fake driver reads every history back through the page tables it was told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.kerneld.rig import ANN, Rig, Sizes, in_loop, oracle, prompt_of, running


@in_loop
async def test_rows_go_on_while_their_pages_move(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=120, host_slabs=0))) as rig:

        async def talk(seed: int) -> bool:
            context, prompt, length = await rig.alloc(), prompt_of(seed, 20), 20 + 29 * (seed % 16)
            output = await rig.begin(context, prompt, length)
            await rig.kernel.free(ANN, context)
            return output.tokens == oracle(prompt, length)

        assert all(await asyncio.gather(*(talk(seed) for seed in range(32))))
        rig.check()
        compactor = rig.machine.devices.first.pager._planner.compactor  # the test's way to know that there was something to see
        assert compactor.num_moved > 0
