"""Housekeeping looks at the books of memory a slice at a time, and tells when they do not agree."""

from __future__ import annotations

from pathlib import Path

from kerneld.events import Event, IntegrityLost, ShareFactorsChanged
from kerneld.housekeeping import Housekeeping
from tests.kerneld.rig import Rig, in_loop, prompt_of, running


@in_loop
async def test_books_that_agree_say_nothing_and_one_wrong_counter_is_told(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context_id = await rig.alloc()
        await rig.infer(context_id, prompt_of(1, 30), 2)
        await rig.settle()
        told: list[Event] = []
        rig.machine.events.subscribe(told.append)

        await Housekeeping(rig.machine).check_integrity()
        assert not told

        context = rig.machine.contexts.find(context_id)
        assert context is not None
        assert context.table is not None
        context.table.num_host[0] += 1
        await Housekeeping(rig.machine).check_integrity()
        context.table.num_host[0] -= 1

        assert [type(event) for event in told] == [IntegrityLost]
        assert "table 3" in str(told[0])


@in_loop
async def test_a_change_of_factors_is_told_once(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        told: list[Event] = []
        rig.machine.events.subscribe(told.append)
        housekeeping = Housekeeping(rig.machine)
        housekeeping.update_factors()
        assert not told

        rig.machine.scheduler.shares.charge("lab/ann", 1_000_000_000)
        housekeeping.update_factors()
        housekeeping.update_factors()

        assert [type(event) for event in told] == [ShareFactorsChanged]
        [event] = told
        assert isinstance(event, ShareFactorsChanged)
        assert event.least_milli < 1000 < event.most_milli
