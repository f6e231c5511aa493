"""Soft and hard limits of a whole daemon: who waits, who is refused and told what, and what a restart remembers."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from kerneld.admission import Demand
from kerneld.calls import LimitMode, Limits
from kerneld.errors import DiskFull, InvalidArgument, QuotaExceeded
from tests.kerneld.conftest import FakeClock
from tests.kerneld.rig import ADMIN, ANN, BOB, Output, Rig, Sizes, in_loop, prompt_of, running
from tests.kerneld.small_disk import full_disk


def soft(*names: str, **limits: Any) -> Limits:
    return Limits(modes=dict.fromkeys(names, LimitMode.SOFT), **limits)


def hard(*names: str, **limits: Any) -> Limits:
    return Limits(modes=dict.fromkeys(names, LimitMode.HARD), **limits)


async def set_limits(rig: Rig, path: str, limits: Limits) -> None:
    await rig.kernel.set_tenant(ADMIN, path, None, limits)


async def events(rig: Rig, name: str) -> list[dict[str, str]]:
    return [dict(record.facts) async for record in rig.machine.events.follow(follow=False) if record.name == name]


class Callers:
    """Requests of Ann and Bob, each on a context of its own."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._seed = 0

    async def begin(self, caller: Any, num_tokens: int = 5) -> asyncio.Task[Output]:
        """One more request; when this returns it is there."""
        self._seed += 1
        known = len(self._rig.machine.requests)
        task = self._rig.begin(await self._rig.alloc(caller), prompt_of(self._seed, 9), num_tokens, caller=caller)
        await self._rig.until(lambda: len(self._rig.machine.requests) > known or task.done())
        return task


@in_loop
async def test_requests_above_a_soft_rate_wait_behind_those_of_others(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        await set_limits(rig, "lab/ann", soft("requests_per_minute", requests_per_minute=1))
        callers = Callers(rig)
        assert rig.worker is not None
        rig.worker.hold()
        order = [BOB, ANN, ANN, BOB, BOB]
        tasks = [await callers.begin(caller) for caller in order]
        assert rig.machine.scheduler.num_deferred == 1
        rig.worker.release()
        assert [(await task).reason for task in tasks] == ["length"] * 5
        admitted = [event["tenant"] for event in await events(rig, "RequestAdmitted")]
        assert admitted[-1] == "lab/ann", "it ran when nobody else was there, a minute before its time"


@in_loop
async def test_a_clock_that_is_set_back_holds_no_request_back(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(Rig(tmp_path, Sizes(max_rows=1), clock=clock)) as rig:
        await set_limits(rig, "lab/ann", soft("requests_per_minute", requests_per_minute=600))
        for _ in range(605):
            rig.machine.admission.take_request("lab/ann", Demand(1))
        callers = Callers(rig)
        assert rig.worker is not None
        rig.worker.hold()
        tasks = [await callers.begin(caller) for caller in (BOB, ANN)]
        assert rig.machine.scheduler.num_deferred == 1
        clock.advance(-3600)
        await rig.until(lambda: not rig.machine.scheduler.num_deferred)  # half a second later
        rig.worker.release()
        await asyncio.gather(*tasks)


@in_loop
async def test_a_request_that_is_cancelled_while_it_is_held_back_gives_its_place_in_the_rate_back(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        await set_limits(rig, "lab/ann", soft("requests_per_minute", requests_per_minute=1))
        callers = Callers(rig)
        assert rig.worker is not None
        rig.worker.hold()
        tasks = [await callers.begin(caller) for caller in (BOB, ANN, ANN, ANN)]
        times = sorted(request.defer_until - request.arrival for request in rig.machine.requests.values() if request.defer_until)
        assert times == pytest.approx([60.0, 120.0], abs=5.0)
        for request in [request for request in rig.machine.requests.values() if request.defer_until]:
            await rig.kernel.cancel(ANN, request.context.id)
        tasks.append(await callers.begin(ANN))
        (last,) = (request for request in rig.machine.requests.values() if request.defer_until)
        assert last.defer_until - last.arrival == pytest.approx(60.0, abs=5.0)
        rig.worker.release()
        await asyncio.gather(*tasks)


@in_loop
@pytest.mark.parametrize("limits", [Limits(), soft("requests_per_minute", requests_per_minute=1000)])
async def test_a_soft_rate_that_is_raised_or_taken_away_lets_go_whom_it_held_back(tmp_path: Path, limits: Limits) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        await set_limits(rig, "lab", soft("requests_per_minute", requests_per_minute=1))
        callers = Callers(rig)
        assert rig.worker is not None
        rig.worker.hold()
        tasks = [await callers.begin(caller) for caller in (BOB, ANN, ANN, ANN)]
        assert rig.machine.scheduler.num_deferred == 3

        await set_limits(rig, "lab", limits)

        await rig.until(lambda: not rig.machine.scheduler.num_deferred)
        assert rig.machine.scheduler.waiting.total == 3
        rig.worker.release()
        await asyncio.gather(*tasks)


@in_loop
async def test_who_was_cancelled_while_it_was_held_back_is_remembered_by_nobody(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        await set_limits(rig, "lab/ann", soft("requests_per_minute", requests_per_minute=1))
        callers = Callers(rig)
        assert rig.worker is not None
        rig.worker.hold()
        tasks = [await callers.begin(caller) for caller in (BOB, ANN, ANN)]
        (held,) = (request for request in rig.machine.requests.values() if request.defer_until)
        await rig.kernel.free(ANN, held.context.id)
        await tasks.pop()
        gc.collect()
        arguments = [each for each in gc.get_referrers(held) if type(each) is tuple]
        assert not [each for each in gc.get_referrers(*arguments) if type(each) is asyncio.TimerHandle]
        rig.worker.release()
        await asyncio.gather(*tasks)


@in_loop
async def test_requests_above_a_hard_rate_are_refused_and_told_when_to_come(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await set_limits(rig, "lab", Limits(requests_per_minute=1))
        await rig.infer(await rig.alloc(), prompt_of(1, 9), 3)
        with pytest.raises(QuotaExceeded, match="Tenant 'lab' may use 1 request per minute; try again in") as caught:
            await rig.infer(await rig.alloc(BOB), prompt_of(2, 9), 3, caller=BOB)
        assert caught.value.retry_after_s == pytest.approx(60.0, abs=5.0)


@in_loop
async def test_what_was_used_of_a_rate_outlives_the_daemon(tmp_path: Path) -> None:  # a restart is no amnesty
    async with running(Rig(tmp_path)) as rig:
        await set_limits(rig, "lab/ann", Limits(requests_per_minute=1))
        await set_limits(rig, "lab/bob", Limits(tokens_per_minute=20))
        assert rig.worker is not None
        rig.worker.hold()
        task = rig.begin(await rig.alloc(), prompt_of(1, 9), 3)
        other = rig.begin(await rig.alloc(BOB), prompt_of(2, 19), 3, caller=BOB)
        await rig.until(lambda: len(rig.machine.requests) == 2)
        task.cancel()
        other.cancel()
        await rig.die_and_return()
        for caller, limit in ((ANN, "requests_per_minute"), (BOB, "tokens_per_minute")):
            with pytest.raises(QuotaExceeded) as caught:
                await rig.infer(await rig.alloc(caller), prompt_of(3, 19), 3, caller=caller)
            assert caught.value.facts["limit"] == limit


@in_loop
async def test_a_refused_write_uses_nothing_of_a_rate(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await set_limits(rig, "lab/ann", Limits(requests_per_minute=1))
        context = await rig.alloc()
        with full_disk(), pytest.raises(DiskFull):
            await rig.infer(context, prompt_of(1, 9), 3)
        assert (await rig.infer(context, prompt_of(1, 9), 3)).reason == "length"


@in_loop
async def test_tokens_that_were_generated_count_in_the_rate(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await set_limits(rig, "lab", Limits(tokens_per_minute=60))
        await rig.infer(await rig.alloc(), prompt_of(1, 10), 40)
        with pytest.raises(QuotaExceeded, match="Tenant 'lab' may use 60 tokens per minute") as caught:
            await rig.infer(await rig.alloc(BOB), prompt_of(2, 30), 3, caller=BOB)
        assert caught.value.retry_after_s == pytest.approx(20.0, abs=5.0)


@in_loop
async def test_running_requests_wait_where_their_limit_is_soft_and_are_refused_where_it_is_hard(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await set_limits(rig, "lab/ann", Limits(max_running=1))
        await set_limits(rig, "lab/bob", hard("max_running", max_running=1))
        callers = Callers(rig)
        assert rig.worker is not None
        rig.worker.hold()
        tasks = [await callers.begin(caller) for caller in (ANN, ANN, BOB)]
        assert (rig.machine.scheduler.running.of("lab/ann"), rig.machine.scheduler.waiting.of("lab/ann")) == (1, 1)
        with pytest.raises(QuotaExceeded, match="Tenant 'lab/bob' has 1 request, as many as may run or wait"):
            await (await callers.begin(BOB))
        rig.worker.release()
        assert [(await task).reason for task in tasks] == ["length"] * 3


@in_loop
async def test_within_limits_shares_hold(tmp_path: Path) -> None:
    """A limit of the others that nobody reaches moves nothing: two tenants get what their weights say."""
    async with running(Rig(tmp_path, Sizes(max_rows=1), max_steps=1)) as rig:
        await rig.kernel.set_tenant(ADMIN, "lab/ann", 1, Limits(requests_per_minute=1000, tokens_per_minute=100_000))
        await rig.kernel.set_tenant(ADMIN, "lab/bob", 3, soft("requests_per_minute", requests_per_minute=500, max_running=5))
        callers, shares = Callers(rig), rig.machine.scheduler.shares
        assert rig.worker is not None
        rig.worker.hold()
        tasks = [await callers.begin(caller) for _ in range(40) for caller in (ANN, BOB)]
        since = [shares.service(path) for path in ("lab/ann", "lab/bob")]
        rig.worker.release()
        await rig.until(lambda: sum(task.done() for task in tasks) >= 40)
        ann, bob = (shares.service(path) - before for path, before in zip(("lab/ann", "lab/bob"), since, strict=True))
        dearest = max(rig.machine.scheduler.charging.tariffs.get("m").input_us(0, 9), 1) * 10
        assert abs(ann - bob / 3) <= 2 * dearest
        await asyncio.gather(*tasks)


@in_loop
async def test_a_removed_tenant_takes_everything_of_it_along(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=2))) as rig:
        await set_limits(rig, "lab/ann", soft("requests_per_minute", requests_per_minute=2))
        callers, machine = Callers(rig), rig.machine
        assert rig.worker is not None
        rig.worker.hold()
        bob = await callers.begin(BOB, 30)
        tasks = [await callers.begin(ANN, 30) for _ in range(5)]
        assert machine.scheduler.num_deferred == 3
        waiting = next(request for request in machine.requests.values() if request.tenant == "lab/ann" and request.ticket)
        machine.scheduler.of(waiting).park(waiting)
        removing = asyncio.ensure_future(rig.kernel.remove_tenant(ADMIN, "lab/ann", True))
        rig.worker.release()
        assert await removing == 5
        assert {(await task).reason for task in tasks} == {"cancelled"}
        assert (machine.scheduler.num_deferred, machine.scheduler.waiting.of("lab/ann")) == (0, 0)
        assert "lab/ann" not in machine.scheduler.shares
        assert (await bob).reason == "length"
        await rig.kernel.add_tenant(ADMIN, "lab/ann", 1, Limits(requests_per_minute=2))
        for _ in range(2):
            machine.admission.check_request("lab/ann", Demand(1))
            machine.admission.take_request("lab/ann", Demand(1))


@in_loop
@pytest.mark.parametrize("weight", [0, -1, 10_001])
async def test_a_weight_that_is_none_says_what_to_do_instead(tmp_path: Path, weight: int) -> None:
    async with running(Rig(tmp_path), loads=False) as rig:
        for call in (rig.kernel.set_tenant(ADMIN, "lab/ann", weight, None), rig.kernel.add_tenant(ADMIN, "lab/eve", weight, Limits())):
            with pytest.raises(InvalidArgument, match=r"use 1 to 10000; it is .* contexts of the class idle"):
                await call
        assert (rig.machine.tenants.get("lab/ann").weight, "lab/eve" in rig.machine.tenants) == (1, False)


@in_loop
async def test_a_limit_that_cannot_be_soft_changes_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path), loads=False) as rig:
        with pytest.raises(InvalidArgument, match="is always hard; soft or hard can be"):
            await set_limits(rig, "lab/ann", soft("max_contexts", max_contexts=1))
        assert rig.machine.tenants.get("lab/ann").limits == Limits()
