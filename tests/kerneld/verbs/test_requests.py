"""Why a request waits, when it starts, and how it went: asked of the kernel by the request's id."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.calls import ListArgs
from kerneld.errors import NotFound
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
        assert rig.kernel.list_requests(ANN, ListArgs()).items == ()
