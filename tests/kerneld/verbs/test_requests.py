"""Why a request waits, when it starts, and how it went: asked of the kernel by the request's id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.calls import Limits, ListArgs
from kerneld.errors import NotFound
from kerneld.starts import MOST_AHEAD
from tests.kerneld.rig import ADMIN, ANN, BOB, Rig, Sizes, in_loop, prompt_of, running

ONE_ROW = Sizes(max_rows=1)


@in_loop
async def test_a_waiting_request_is_listed_and_explained_by_its_id(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, ONE_ROW)) as rig:
        first = rig.begin(await rig.alloc(), prompt_of(1, 20), 60)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        waiting = await rig.alloc()
        second = rig.begin(waiting, prompt_of(2, 20), 4)
        await rig.until(lambda: len(rig.machine.requests) == 2)

        listed = {each.context_id: each for each in rig.kernel.list_requests(ANN, ListArgs()).items}
        told = rig.kernel.explain_request(ANN, listed[waiting].request)

        assert sorted(each.state for each in listed.values()) == ["running", "waiting"]
        assert told.subject == f"request {listed[waiting].request}"
        assert told.state == "waiting"
        assert told.outlook is not None
        assert told.outlook.tenant_position == 1
        assert [obstacle.code for obstacle in told.obstacles] == ["ROWS"]
        by_context = rig.kernel.explain_context(ANN, waiting).outlook
        assert by_context is not None
        assert by_context.request == told.outlook.request
        await first
        await second


@in_loop
async def test_a_request_of_somebody_else_is_not_there(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        output = rig.begin(await rig.alloc(), prompt_of(1, 20), 40)
        await rig.until(lambda: len(rig.machine.requests) == 1)
        request_id = next(iter(rig.machine.requests))

        assert rig.kernel.list_requests(BOB, ListArgs(everybody=True)).items == ()
        assert [each.request for each in rig.kernel.list_requests(ADMIN, ListArgs(everybody=True)).items] == [request_id]
        assert rig.kernel.list_requests(ADMIN, ListArgs(everybody=True, tenant="lab/bob")).items == ()
        with pytest.raises(NotFound) as refusal:
            rig.kernel.explain_request(BOB, request_id)
        assert "kernelctl why" in refusal.value.message
        await output
        with pytest.raises(NotFound):
            rig.kernel.explain_request(BOB, request_id)


@in_loop
async def test_a_request_that_ended_says_for_a_while_how_it_went(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        output = await rig.infer(await rig.alloc(), prompt_of(1, 20), 6)
        assert output.started is not None

        told = rig.kernel.explain_request(ANN, output.started.request)

        assert told.state == "finished"
        assert told.outlook is not None
        assert (told.outlook.reason, told.outlook.output_tokens, told.outlook.num_preemptions) == ("length", 6, 0)
        assert told.outlook.first_token_s is not None
        assert told.summary.startswith("It ended: length. It waited ")
        assert rig.kernel.explain_request(ANN, output.started.request[:12]).outlook == told.outlook
        with pytest.raises(NotFound):
            rig.kernel.explain_request(BOB, output.started.request[:12])
        assert rig.kernel.list_requests(ANN, ListArgs()).items == ()


@in_loop
async def test_places_are_told_in_the_whole_line_with_those_who_are_ahead(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, ONE_ROW)) as rig:
        tasks = [rig.begin(await rig.alloc(BOB), prompt_of(9, 20), 60, caller=BOB)]
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        tasks += [rig.begin(await rig.alloc(ANN), prompt_of(idx, 20), 4) for idx in range(3)]
        late = await rig.alloc(BOB)
        tasks.append(rig.begin(late, prompt_of(8, 20), 4, caller=BOB))
        await rig.until(lambda: len(rig.machine.requests) == 5)

        told = rig.kernel.explain_context(BOB, late)
        hers = rig.kernel.list_requests(ANN, ListArgs()).items
        seen_by_admin = rig.kernel.explain_context(ADMIN, late).outlook

        assert told.outlook is not None
        assert seen_by_admin is not None
        places = sorted([told.outlook.position, *(each.position for each in hers)])
        assert places == [1, 2, 3, 4]
        assert told.outlook.position > 1  # he was served already, and she is before him by name
        assert told.outlook.tenant_position == 1
        assert f"number {told.outlook.position} of all in line, and number 1 in the line of lab/bob." in told.obstacles[-1].text
        own, other = sorted(told.outlook.contenders, key=lambda each: not each.is_own)
        assert (own.tenant, other.tenant) == ("lab/bob", "others")
        assert own.lag_us >= 0
        assert (other.lag_us, other.num_waiting, other.num_running) == (0, 3, 0)
        assert {each.tenant for each in seen_by_admin.contenders} == {"lab/bob", "lab/ann"}
        for task in tasks:
            await task


@in_loop
async def test_a_deferred_request_says_until_when(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, ONE_ROW)) as rig:
        first = rig.begin(await rig.alloc(), prompt_of(1, 20), 60)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        waiting = await rig.alloc()
        second = rig.begin(waiting, prompt_of(2, 20), 4)
        await rig.until(lambda: len(rig.machine.requests) == 2)
        request = next(each for each in rig.machine.requests.values() if each.context.id == waiting)
        rig.machine.know_tenant(replace(rig.machine.tenants.get("lab/ann"), limits=Limits(max_running=2)))
        assert [each.code for each in rig.kernel.explain_context(ANN, waiting).obstacles] == ["ROWS"]
        rig.machine.know_tenant(replace(rig.machine.tenants.get("lab/ann"), limits=Limits(max_running=1)))
        assert [each.code for each in rig.kernel.explain_context(ANN, waiting).obstacles] == ["RUNNING_LIMIT", "ROWS"]
        rig.machine.scheduler.defer(request, rig.machine.clock() + 60.0)

        told = rig.kernel.explain_context(ANN, waiting)

        assert told.outlook is not None
        assert (told.outlook.state, told.outlook.position) == ("deferred", 0)
        assert told.outlook.deferred_until == request.defer_until
        assert told.outlook.estimate.seconds is None
        assert told.obstacles[0].code == "DEFERRED"
        assert told.obstacles[0].text.startswith("it is above a soft limit that holds for lab/ann: it joins the line in ")
        assert told.summary == "Its request waits: a soft limit holds it back."  # and the obstacle alone says for how long
        await first
        await second  # nobody else was there


@in_loop
async def test_one_looks_no_further_than_some_hundreds_ahead(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, ONE_ROW, max_queued=1000)) as rig:
        tasks = [rig.begin(await rig.alloc(), prompt_of(idx, 4), 1) for idx in range(MOST_AHEAD + 10)]
        await rig.until(lambda: rig.machine.scheduler.num_ready > MOST_AHEAD + 2)
        last = max(rig.machine.requests.values(), key=lambda each: each.arrival)

        told = rig.kernel.explain_request(ANN, last.id).outlook

        assert told is not None
        assert (told.position, told.is_position_least) == (MOST_AHEAD + 1, True)
        for task in tasks:
            task.cancel()
