"""The limits of time that a call may set: what is refused, who ends when, and what it is charged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kerneld.errors import InvalidArgument
from tests.kerneld.conftest import FakeClock
from tests.kerneld.rig import ANN, BOB, Rig, Sizes, in_loop, oracle, prompt_of, running


@pytest.mark.parametrize("limit", ["deadline_s", "max_queue_s"])
@pytest.mark.parametrize("seconds", [-1.0, -1e-9, math.nan, math.inf])
@in_loop
async def test_a_time_in_the_past_and_one_that_is_no_time_are_refused(tmp_path: Path, limit: str, seconds: float) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        with pytest.raises(InvalidArgument, match=limit):
            await rig.infer(context, prompt_of(1, 9), 3, **{limit: seconds})  # type: ignore[arg-type]
        assert rig.tokens(context) == []


@in_loop
async def test_a_request_that_waits_longer_than_it_may_ends_and_costs_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(Rig(tmp_path, Sizes(max_rows=1), clock=clock)) as rig:
        assert rig.worker is not None
        rig.worker.hold()
        first, second = await rig.alloc(ANN), await rig.alloc(BOB)
        runs = rig.begin(first, prompt_of(1, 9), 40, max_queue_s=2.0)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        waits = rig.begin(second, prompt_of(2, 9), 40, caller=BOB, max_queue_s=2.0)
        await rig.until(lambda: len(rig.machine.requests) == 2)

        clock.advance(2.1)
        output = await waits
        rig.worker.release()

        assert (output.reason, output.tokens) == ("deadline", [])
        assert "waited longer than 2 s" in output.detail
        assert rig.machine.scheduler.shares.service("lab/bob") == 0
        assert (await runs).tokens == oracle(prompt_of(1, 9), 40), "who was seated in time may take its time"


@in_loop
async def test_what_was_prepaid_is_given_back_when_the_deadline_passes(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(Rig(tmp_path, clock=clock, step_deadline_floor_s=60.0)) as rig:
        assert rig.worker is not None
        shares = rig.machine.scheduler.shares
        rig.machine.scheduler.charging.surcharge = lambda _request, _cost: 0  # what the load took on this machine
        context = await rig.alloc()
        await rig.infer(await rig.alloc(), prompt_of(1, 9), 30)
        before = shares.service("lab/ann")
        await rig.settle()
        rig.worker.hold()
        late = rig.begin(context, prompt_of(2, 9), 40, deadline_s=3.0)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        prepaid = shares.service("lab/ann") - before

        clock.advance(3.1)
        output = await late
        rig.worker.release()

        assert output.reason == "deadline"
        assert prepaid == 9 * 10 + 30 * 20
        assert shares.service("lab/ann") - before == 9 * 10 + len(output.tokens) * 20


@in_loop
async def test_a_limit_of_waiting_outlives_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(Rig(tmp_path, Sizes(max_rows=1), clock=clock)) as rig:
        assert rig.worker is not None
        rig.worker.hold()
        first, second = await rig.alloc(), await rig.alloc()
        rig.begin(first, prompt_of(1, 9), 40)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        rig.begin(second, prompt_of(2, 9), 40, max_queue_s=5.0)
        await rig.until(lambda: len(rig.machine.requests) == 2)

        await rig.die_and_return()
        limits = {request.context.id: request.queue_until for request in rig.machine.requests.values()}

        assert limits == {first: None, second: 1005.0}
