"""What tenants do just now."""

from __future__ import annotations

from pathlib import Path

from kerneld.activities import activities_of
from kerneld.starts import Starts
from tests.kerneld.rig import ADMIN, ANN, BOB, Rig, Sizes, in_loop, prompt_of, running


@in_loop
async def test_the_busiest_come_first_and_who_does_nothing_is_left_out(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        now = 0.0
        machine = rig.machine
        machine.starts = starts = Starts(machine.scheduler, machine.requests, 1, lambda: now)
        assert list(activities_of(machine, machine.tenants)) == []
        starts.tick()
        tasks = [rig.begin(await rig.alloc(), prompt_of(idx, 40), 30) for idx in range(3)]
        await rig.alloc(BOB)
        await rig.until(lambda: machine.scheduler.waiting.total == 2)
        now = 5.0
        starts.tick()

        frame = [each async for each in rig.kernel.top(ADMIN, 1.0, 1)][0]  # noqa: RUF015 - there is only one
        seen_by_bob = [each async for each in rig.kernel.top(BOB, 1.0, 1)][0]  # noqa: RUF015

        lab, ann, bob = frame.activities
        assert (lab.tenant, ann.tenant, bob.tenant) == ("lab", "lab/ann", "lab/bob")
        assert (ann.num_waiting, ann.num_running, ann.num_contexts, bob.num_contexts) == (2, 1, 3, 1)
        assert ann.recent_us == lab.recent_us > 0
        assert (ann.recent_share, bob.recent_share) == (1.0, 0.0)
        assert (frame.recent_s, frame.jain) == (5.0, 1.0)
        assert "lab/ann" not in {each.tenant for each in seen_by_bob.activities}
        for task in tasks:
            await task


@in_loop
async def test_what_siblings_owe_adds_up_to_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        tasks = [rig.begin(await rig.alloc(each), prompt_of(idx, 40), 30, caller=each) for idx in range(3) for each in (ANN, BOB)]
        await rig.until(lambda: rig.machine.scheduler.waiting.total == 5)
        rig.machine.starts.map(0.0)

        owed = {each.tenant: each.owed_us for each in activities_of(rig.machine, rig.machine.tenants)}

        assert abs(owed["lab/ann"] + owed["lab/bob"]) <= 1
        for task in tasks:
            await task
