"""The book of usage on a whole daemon: what streams said, what is kept over a restart and a death, and what follows for shares."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kerneld.calls import Caller, ListArgs, Principal, Role
from kerneld.errors import KernelError, NotFound
from kerneld.usage.amounts import SYSTEM
from kerneld.usage.decay import DAY_S
from kerneld.usage.pageseconds import PageSeconds
from kerneld.usage.report import ShareRecord, Span, UsageArgs, UsageRecord
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, BOB, Output, Rig, Sizes, in_loop, prompt_of, running
from tests.kerneld.small_disk import full_disk

LAB = Caller(Principal("head", "lab", frozenset({Role.USER})))


async def usage_of(rig: Rig, caller: Caller = ADMIN, **args: object) -> dict[str, UsageRecord]:
    page = await rig.kernel.usage(caller, UsageArgs(**args))  # type: ignore[arg-type]
    return {record.tenant: record for record in page.items}


def shares_of(rig: Rig) -> dict[str, ShareRecord]:
    return {record.tenant: record for record in rig.kernel.shares(ADMIN, ListArgs()).items}


def assert_exact(rig: Rig) -> None:
    """Usage shows the service that the accounts show, now: loads may be charged at any moment."""
    decayed_us, service = shares_of(rig)["lab"].decayed_us, rig.machine.scheduler.shares.own_service("lab/ann")
    assert rig.machine.usage.accounts.totals("lab/ann").service == service > 0
    assert decayed_us == pytest.approx(service, abs=2)


def said(outputs: list[Output]) -> tuple[int, int, int]:
    """What streams told their readers: input, cached, output."""
    ends = [output.finished.usage for output in outputs if output.finished is not None]
    return sum(end.input_tokens for end in ends), sum(end.cached_tokens for end in ends), sum(end.output_tokens for end in ends)


def tokens_of(record: UsageRecord) -> tuple[int, int, int]:
    return record.input_tokens, record.cached_tokens, record.output_tokens


@in_loop
async def test_usage_adds_up_with_what_the_streams_said_and_with_what_steps_took(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"prefill_s": "0.001"}
    async with running(rig):
        steps_s: list[float] = []
        rig.machine.devices.first.dispatcher.on_progress = lambda _prefill, _output, busy_s: steps_s.append(busy_s)
        contexts = [await rig.alloc() for _ in range(3)]
        hers = [await rig.infer(context, prompt_of(1, 40), 6) for context in contexts]
        his = list(await asyncio.gather(*[rig.infer(await rig.alloc(BOB), prompt_of(7 + seed, 10), 5, caller=BOB) for seed in range(4)]))
        found = await usage_of(rig)
        service = rig.machine.scheduler.shares.own_service("lab/ann")

    assert tokens_of(found["lab/ann"]) == said(hers)
    assert found["lab/ann"].cached_tokens > 0
    assert tokens_of(found["lab/bob"]) == said(his)
    assert (found["lab/ann"].requests, found["lab/bob"].requests) == (3, 4)
    assert sum(record.device_us for record in found.values()) == pytest.approx(sum(steps_s) * 1e6, abs=2)
    assert found["lab/ann"].device_us > found["lab/bob"].device_us > 0
    assert found["lab/ann"].service_us == service > 0


@in_loop
async def test_a_clean_restart_keeps_all_of_it(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        for seed in range(3):
            await rig.infer(await rig.alloc(), prompt_of(seed, 20), 6)
        rig.machine.usage.sample()
        before = await usage_of(rig)
        await rig.stop()
        await rig.start()
        rig.is_worker_replaced = True
        after = await usage_of(rig)

        for record in (before["lab/ann"], after["lab/ann"]):
            assert (record.requests, tokens_of(record)) == (3, (60, record.cached_tokens, 18))
        # What was still owed for the load is charged when the model leaves.
        assert after["lab/ann"].service_us - after["lab/ann"].load_us == before["lab/ann"].service_us - before["lab/ann"].load_us
        assert after["lab/ann"].device_us == before["lab/ann"].device_us
        assert after["lab/ann"].device_page_ms >= before["lab/ann"].device_page_ms
        assert_exact(rig)


@in_loop
async def test_a_death_loses_no_service_and_no_more_than_what_was_not_written(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        first = await rig.infer(await rig.alloc(), prompt_of(1, 20), 6)
        await rig.machine.usage.write(rig.machine.store.usage)
        await rig.infer(await rig.alloc(), prompt_of(2, 30), 9)
        await rig.settle()
        before = rig.machine.scheduler.shares.own_service("lab/ann")

        await rig.die_and_return()

        found = (await usage_of(rig))["lab/ann"]
        assert tokens_of(found) == said([first])
        assert found.service_us >= before
        assert_exact(rig)


@in_loop
async def test_usage_that_could_not_be_written_is_shown_and_written_later(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        output = await rig.infer(await rig.alloc(), prompt_of(1, 20), 6)
        with full_disk(), pytest.raises(KernelError):
            await rig.machine.usage.write(rig.machine.store.usage)
        assert tokens_of((await usage_of(rig))["lab/ann"]) == said([output])
        await rig.machine.usage.write(rig.machine.store.usage)
        await rig.die_and_return()
        assert tokens_of((await usage_of(rig))["lab/ann"]) == said([output])


@in_loop
async def test_a_cancelled_writer_counts_nothing_twice(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        output = await rig.infer(await rig.alloc(), prompt_of(1, 20), 6)
        writing = asyncio.ensure_future(rig.machine.usage.write(rig.machine.store.usage))
        await asyncio.sleep(0)
        writing.cancel()
        await rig.machine.usage.write(rig.machine.store.usage)
        assert tokens_of((await usage_of(rig))["lab/ann"]) == said([output])


@in_loop
async def test_what_is_computed_again_after_a_death_of_the_worker_is_the_systems(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(host_slabs=0))
    rig.options = {"prefill_s": "0.001"}
    async with running(rig):
        task = rig.begin(await rig.alloc(), prompt_of(1, 40), 60)
        await rig.until(lambda: bool(rig.machine.requests) and next(iter(rig.machine.requests.values())).num_generated > 20)
        assert rig.worker is not None
        rig.worker.die()
        await task
        found = await usage_of(rig)

    assert found["lab/ann"].device_us == pytest.approx(100_000, abs=2000)  # 40 of input and 60 of output, a millisecond each, once
    assert 50_000 < found[SYSTEM].device_us < 110_000


@in_loop
async def test_pages_that_are_held_count_for_their_owner(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.infer(await rig.alloc(), prompt_of(1, 41), 2)
        ledger, now = rig.machine.devices.first.pager.ledger, [90.0]
        pages = PageSeconds(ledger, lambda: now[0])
        now[0] += 10.0
        held = {(item.owner, item.tier): item.page_ms for item in pages.sample()}
        assert held["lab/ann", Tier.DEVICE] == 10_000 * 11
        pools = {tier: rig.machine.devices.first.pager._mapping.pools(tier).values() for tier in ledger.num_pages}
        assert {tier: sum(pool.num_used for pool in found) for tier, found in pools.items()} == ledger.num_pages


@in_loop
async def test_everybody_sees_his_own_way_through_the_tree_and_operators_all(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        for caller in (ANN, BOB):
            await rig.infer(await rig.alloc(caller), prompt_of(1, 20), 6, caller=caller)
        for is_written in (False, True):
            if is_written:
                await rig.machine.usage.write(rig.machine.store.usage)
            assert set(await usage_of(rig, ANN)) == {"lab/ann"}
            assert set(await usage_of(rig, LAB)) == {"lab/ann", "lab/bob"}
            assert {"lab/ann", "lab/bob"} <= set(await usage_of(rig))
            assert set(await usage_of(rig, tenant="lab/bob")) == {"lab/bob"}
        for caller, tenant in ((ANN, "lab/bob"), (ANN, SYSTEM), (ADMIN, "nobody"), (ANN, "nobody")):
            with pytest.raises(NotFound):
                await usage_of(rig, caller, tenant=tenant)


@in_loop
async def test_a_removed_tenant_keeps_its_history_and_its_successor_begins_at_zero(tmp_path: Path) -> None:
    now = [1.7e9]
    async with running(Rig(tmp_path, clock=lambda: now[0])) as rig:
        await rig.infer(await rig.alloc(BOB), prompt_of(1, 20), 6, caller=BOB)
        await rig.kernel.remove_tenant(ADMIN, "lab/bob", True)
        assert (await usage_of(rig, tenant="lab/bob"))["lab/bob"].is_removed
        now[0] += 1.0
        await rig.kernel.add_tenant(ADMIN, "lab/bob", 1, rig.machine.tenants.get("lab/ann").limits)
        await rig.machine.usage.write(rig.machine.store.usage)
        await rig.infer(await rig.alloc(BOB), prompt_of(1, 7), 2, caller=BOB)
        for _ in range(2):
            records = (await rig.kernel.usage(ADMIN, UsageArgs(tenant="lab/bob"))).items
            assert [(record.is_removed, record.output_tokens) for record in records] == [(True, 6), (False, 2)]
            assert (await usage_of(rig, BOB))["lab/bob"].output_tokens == 2
            assert shares_of(rig)["lab"].decayed_us > shares_of(rig)["lab/bob"].decayed_us
            await rig.machine.usage.write(rig.machine.store.usage)


@in_loop
async def test_hours_and_days_are_told_apart_and_paged(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    async with running(Rig(tmp_path, clock=lambda: now[0])) as rig:
        for hour in range(5):
            for caller in (ANN, BOB):
                await rig.infer(await rig.alloc(caller), prompt_of(hour, 10), 1 + hour, caller=caller)
            if hour % 2:
                await rig.machine.usage.write(rig.machine.store.usage)
            now[0] += 3600.0
        shown: list[UsageRecord] = []
        token = ""
        while True:
            page = await rig.kernel.usage(LAB, UsageArgs(span=Span.HOUR, page_size=3, page_token=token))
            shown += [record for record in page.items if record.requests]
            token = page.next_page_token
            if not token:
                break
        starts = [1_699_999_200.0 + 3600 * hour for hour in range(5)]
        assert [(record.start, record.tenant, record.output_tokens) for record in shown] == [
            (start, tenant, 1 + hour) for hour, start in enumerate(starts) for tenant in ("lab/ann", "lab/bob")
        ]
        days = (await rig.kernel.usage(LAB, UsageArgs(span=Span.DAY))).items
        assert [(record.start, record.tenant, record.output_tokens) for record in days] == [
            (1_699_920_000.0, "lab/ann", 3),
            (1_699_920_000.0, "lab/bob", 3),
            (1_700_006_400.0, "lab/ann", 12),
            (1_700_006_400.0, "lab/bob", 12),
        ]
        part = await usage_of(rig, ANN, since=starts[1] + 1800, until=starts[2] + 1)
        assert part["lab/ann"].output_tokens == 2 + 3
        assert part["lab/ann"].start == starts[1]
        assert await usage_of(rig, ANN, since=now[0] + DAY_S) == {}
        for token in ("x", "1 2", "a b c", "-3600 0.0 lab", f"{1 << 80} 0.0 lab"):
            with pytest.raises(KernelError, match="page_token"):
                await usage_of(rig, page_token=token)


@in_loop
async def test_hours_that_are_too_old_are_dropped(tmp_path: Path) -> None:
    now = [1.7e9]
    async with running(Rig(tmp_path, clock=lambda: now[0], usage_days=2)) as rig:
        await rig.infer(await rig.alloc(), prompt_of(1, 10), 3)
        await rig.machine.usage.write(rig.machine.store.usage)
        for _ in range(2):
            now[0] += 0.95 * DAY_S
            await rig.machine.usage.forget_old(rig.machine.store.usage)
        assert (await usage_of(rig))["lab/ann"].output_tokens == 3
        now[0] += 0.2 * DAY_S
        await rig.machine.usage.forget_old(rig.machine.store.usage)
        assert "lab/ann" not in await usage_of(rig)
        assert rig.machine.usage.accounts.totals("lab/ann").output_tokens == 3


@in_loop
async def test_a_clock_that_jumps_ahead_deletes_no_history(tmp_path: Path) -> None:
    now = [1.7e9]
    async with running(Rig(tmp_path, clock=lambda: now[0], usage_days=2)) as rig:
        await rig.infer(await rig.alloc(), prompt_of(1, 10), 3)
        await rig.machine.usage.write(rig.machine.store.usage)
        now[0] += 5000 * DAY_S
        for _ in range(3):
            await rig.machine.usage.forget_old(rig.machine.store.usage)
            now[0] += 0.3 * DAY_S
        assert (await usage_of(rig))["lab/ann"].output_tokens == 3
        now[0] += 0.3 * DAY_S
        await rig.machine.usage.forget_old(rig.machine.store.usage)
        assert "lab/ann" not in await usage_of(rig)


@in_loop
async def test_factors_follow_from_usage_level_by_level_and_are_kept_over_a_death(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        for path in ("lab/cat", "other"):
            await rig.kernel.add_tenant(ADMIN, path, 1, rig.machine.tenants.get("lab").limits)
        rig.machine.scheduler.shares.charge("lab/ann", 4_000_000_000)
        rig.machine.scheduler.shares.charge("lab/bob", 400_000_000)
        rig.machine.usage.update_factors()
        before = shares_of(rig)

        assert {path: before[path].factor_milli for path in before} == {
            "lab": 707,
            "lab/ann": 606,
            "lab/bob": 1915,
            "lab/cat": 4000,
            "other": 4000,
        }
        assert before["lab/ann"].used_share == pytest.approx(10 / 11)
        assert before["lab/ann"].machine_share == pytest.approx(before["lab"].share / 3)
        assert sum(before[path].effective_share for path in ("lab/ann", "lab/bob", "lab/cat")) == pytest.approx(1.0)
        assert before["lab/ann"].effective_share == pytest.approx(606 / (606 + 1915 + 4000))

        rig.machine.books.flush()
        await rig.die_and_return()
        assert {path: record.factor_milli for path, record in shares_of(rig).items()} == {
            path: before[path].factor_milli for path in before
        }


@in_loop
async def test_the_effective_share_is_what_tenants_get_that_all_want_the_device(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        shares = rig.machine.scheduler.shares
        await rig.kernel.add_tenant(ADMIN, "lab/cat", 2, rig.machine.tenants.get("lab").limits)
        shares.charge("lab/ann", 4_000_000_000)
        rig.machine.usage.update_factors()
        told = {path: record.effective_share for path, record in shares_of(rig).items() if "/" in path}
        before = {path: shares.service(path) for path in told}
        for path in told:
            shares.enqueue(path)
        for _ in range(3000):
            picked = shares.pick()
            assert picked is not None
            shares.charge(picked, 1000)
        got = {path: (shares.service(path) - before[path]) / 3_000_000 for path in told}
        for path in told:
            shares.dequeue(path)
    assert got == pytest.approx(told, abs=0.002)
    assert sorted(got, key=got.__getitem__) == ["lab/ann", "lab/bob", "lab/cat"]


@in_loop
async def test_what_a_group_asked_for_itself_competes_with_its_members(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        rig.machine.scheduler.shares.charge("lab", 4_000_000_000)
        rig.machine.scheduler.shares.charge("lab/ann", 1_000_000_000)
        rig.machine.usage.update_factors()
        shares = rig.machine.scheduler.shares
        assert [shares.factor(path) for path in ("lab/.", "lab/ann", "lab/bob")] == [645, 1291, 4000]


@in_loop
async def test_without_long_term_shares_all_factors_are_one(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, long_term_shares=False)) as rig:
        rig.machine.scheduler.shares.set_factor("lab/ann", 250)
        rig.machine.scheduler.shares.charge("lab/ann", 4_000_000_000)
        rig.machine.usage.update_factors()
        assert {record.factor_milli for record in shares_of(rig).values()} == {1000}


@in_loop
async def test_shares_show_only_ones_own_way_through_the_tree(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert [record.tenant for record in rig.kernel.shares(ANN, ListArgs()).items] == ["lab", "lab/ann"]
        page = rig.kernel.shares(ADMIN, ListArgs(page_size=2))
        rest = rig.kernel.shares(ADMIN, ListArgs(page_size=2, page_token=page.next_page_token))
        assert [record.tenant for record in (*page.items, *rest.items)] == ["lab", "lab/ann", "lab/bob"]
