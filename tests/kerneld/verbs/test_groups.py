"""Sharing groups: who may opt in, what is shared then, and what stays when a member leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kerneld.calls import Access, Caller, CheckpointArgs, ForkArgs, Grant, ListArgs, Principal, Role
from kerneld.errors import AlreadyExists, DiskFull, NotFound, Unavailable, WrongState
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, BOB, Output, Rig, in_loop, oracle, prompt_of, running, with_id
from tests.kerneld.small_disk import full_disk

PROMPT = prompt_of(1, 41)


def cached(output: Output) -> int:
    assert output.finished is not None
    return output.finished.usage.cached_tokens


async def say(rig: Rig, caller: Caller, group: str = "") -> Output:
    """Infer the same prompt on a new context."""
    output = await rig.infer(await rig.alloc(caller, sharing_group=group), PROMPT, caller=caller)
    assert output.tokens == oracle(PROMPT, 8)
    return output


@in_loop
async def test_members_that_opt_in_share_and_nobody_else(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann", "lab/bob"])

        first, second = await say(rig, ANN, "team"), await say(rig, BOB, "team")
        alone = [await say(rig, ANN), await say(rig, BOB)]

        assert (cached(first), cached(second)) == (0, 40)
        assert second.finished is not None
        assert second.finished.usage.shared_tokens == 40
        assert [cached(output) for output in alone] == [0, 0]


@in_loop
async def test_pages_shared_in_a_group_are_charged_in_equal_parts(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab"])
        await say(rig, ANN, "team")
        before = rig.machine.devices.first.pager.ledger.used("lab", Tier.DEVICE)

        await say(rig, BOB, "team")

        ledger = rig.machine.devices.first.pager.ledger
        assert ledger.used("lab/ann", Tier.DEVICE) == ledger.used("lab/bob", Tier.DEVICE)
        assert before < ledger.used("lab", Tier.DEVICE) < 2 * before


@in_loop
async def test_a_stranger_is_told_that_there_is_no_such_group(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann"])

        for name in ("team", "nobody"):
            with pytest.raises(NotFound):
                await rig.alloc(BOB, sharing_group=name)
        assert rig.kernel.list_sharing_groups(BOB, ListArgs()).items == ()
        assert [item.name for item in rig.kernel.list_sharing_groups(ANN, ListArgs()).items] == ["team"]


@in_loop
async def test_whoever_leaves_keeps_what_lives_and_begins_nothing_new(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann", "lab/bob"])
        await say(rig, ANN, "team")
        living = await rig.alloc(BOB, sharing_group="team")

        await rig.kernel.set_sharing_group(ADMIN, "team", ["lab/ann"])

        assert cached(await rig.infer(living, PROMPT, caller=BOB)) == 40
        with pytest.raises(NotFound):
            await rig.alloc(BOB, sharing_group="team")
        fork = await rig.kernel.fork(BOB, ForkArgs(living))
        assert fork.sharing_group == ""


@in_loop
async def test_a_group_with_living_contexts_is_not_removed(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann"])
        context = await rig.alloc(ANN, sharing_group="team")

        with pytest.raises(WrongState, match="1 contexts live"):
            await rig.kernel.remove_sharing_group(ADMIN, "team")
        await rig.kernel.free(ANN, context)
        await rig.kernel.remove_sharing_group(ADMIN, "team")

        assert rig.kernel.list_sharing_groups(ADMIN, ListArgs()).items == ()


@in_loop
async def test_groups_are_checked_and_calls_answered_once(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        with pytest.raises(NotFound):
            await rig.kernel.add_sharing_group(ADMIN, "team", ["nobody"])
        made = [await rig.kernel.add_sharing_group(with_id(ADMIN, "1"), "team", ["lab/bob", "lab/ann", "lab/ann"]) for _ in range(2)]
        with pytest.raises(AlreadyExists):
            await rig.kernel.add_sharing_group(ADMIN, "team", [])

        assert made[0] == made[1]
        assert made[0].members == ("lab/ann", "lab/bob")


@in_loop
async def test_groups_and_who_shares_in_them_survive_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with running(rig):
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann", "lab/bob"])
        context = await rig.alloc(ANN, sharing_group="team")
        await rig.infer(context, PROMPT)

        await rig.die_and_return(keeps_worker=True)
        await rig.until(rig.kernel.is_ready)
        await rig.load()

        assert rig.stat(context).sharing_group == "team"
        assert cached(await say(rig, BOB, "team")) == 40


@in_loop
async def test_a_removed_tenant_is_a_member_no_more(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with running(rig):
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann", "lab/bob"])

        await rig.kernel.remove_tenant(ADMIN, "lab/bob", False)

        assert rig.kernel.list_sharing_groups(ADMIN, ListArgs()).items[0].members == ("lab/ann",)
        assert [row.members for row in await rig.machine.store.load_groups()] == [("lab/ann",)]


@in_loop
async def test_an_image_comes_back_into_its_group_or_is_computed_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann"])
        context = await rig.alloc(ANN, sharing_group="team")
        await rig.infer(context, PROMPT)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))

        inside = await rig.kernel.restore(ANN, image.id, {})
        await rig.kernel.set_sharing_group(ADMIN, "team", [])
        outside = await rig.kernel.restore(ANN, image.id, {})

        assert (inside.context.sharing_group, inside.pages_restored) == ("team", 12)
        assert (outside.context.sharing_group, outside.pages_restored) == ("", 0)
        assert "team" in outside.recompute_reason
        assert (await rig.infer(outside.context.id)).tokens == oracle(rig.tokens(context), 8)


@in_loop
async def test_a_granted_fork_is_not_found_by_the_rest_of_its_tenant(tmp_path: Path) -> None:
    carl = Caller(Principal("carl", "lab/bob", frozenset({Role.USER})))
    async with running(Rig(tmp_path)) as rig:
        parent = await rig.alloc(ANN)
        await rig.infer(parent, PROMPT)
        await rig.kernel.grant(ANN, parent, Grant("principal:bob", frozenset({Access.FORK})))
        await rig.kernel.fork(BOB, ForkArgs(parent))

        assert cached(await say(rig, carl)) == 0


@in_loop
async def test_of_two_who_add_the_same_group_at_once_one_is_refused(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        adding = [rig.kernel.add_sharing_group(ADMIN, "team", [member]) for member in ("lab/ann", "lab/bob")]
        first, second = await asyncio.gather(*adding, return_exceptions=True)

        assert isinstance(second, AlreadyExists)
        assert [info.members for info in rig.kernel.list_sharing_groups(ADMIN, ListArgs()).items] == [("lab/ann",)]
        assert not isinstance(first, BaseException)


@in_loop
async def test_a_group_whose_removal_fails_keeps_its_members(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.add_sharing_group(ADMIN, "team", ["lab/ann"])
        with full_disk(), pytest.raises((DiskFull, Unavailable)):
            await rig.kernel.remove_sharing_group(ADMIN, "team")
        assert [info.members for info in rig.kernel.list_sharing_groups(ADMIN, ListArgs()).items] == [("lab/ann",)]
        await rig.alloc(ANN, sharing_group="team")
