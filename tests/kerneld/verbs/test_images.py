"""Images: what a checkpoint takes, and what a restore makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kerneld.calls import CheckpointArgs, ForkArgs, ListArgs
from kerneld.errors import DataLoss, NotFound
from tests.kerneld.rig import ANN, BOB, Rig, Sizes, in_loop, oracle, prompt_of, running


@in_loop
async def test_a_restored_context_goes_on_alike_without_computing_its_past(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        restored = await rig.kernel.restore(ANN, image.id, {})
        assert restored.pages_restored == image.num_pages > 0
        output = await rig.infer(restored.context.id, (), 9)
        assert output.tokens == oracle(rig.tokens(context), 9)
        assert output.finished is not None
        assert output.finished.usage.pages_restored == image.num_pages


@in_loop
async def test_a_checkpoint_beside_a_busy_device_takes_a_few_plans(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        still, busy = await rig.alloc(), await rig.alloc()
        await rig.infer(still, prompt_of(1, 21), 8)
        task = rig.begin(busy, prompt_of(2, 9), 900)
        await rig.until(lambda: len(rig.tokens(busy)) > 30)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(still))
        assert not task.done(), "the device is busy still"
        running_image = await rig.kernel.checkpoint(ANN, CheckpointArgs(busy))
        assert image.num_pages > 0
        restored = await rig.kernel.restore(ANN, running_image.id, {})
        past = rig.tokens(restored.context.id)
        assert (await rig.infer(restored.context.id, (), 4)).tokens == oracle(past, 4)
        await rig.kernel.cancel(ANN, busy)
        await task


@in_loop
async def test_a_context_that_changes_during_its_checkpoint_spoils_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        for turn in range(6):
            context = await rig.alloc()
            await rig.infer(context, prompt_of(turn, 21), 8)
            past = rig.tokens(context)
            saving = asyncio.ensure_future(rig.kernel.checkpoint(ANN, CheckpointArgs(context)))
            await asyncio.sleep(0.002 * turn)
            await rig.kernel.truncate(ANN, context, 6)
            await rig.infer(context, prompt_of(turn + 60, 20), 4)
            image = await saving
            restored = await rig.kernel.restore(ANN, image.id, {})
            taken = rig.tokens(restored.context.id)
            assert taken == past or taken == rig.tokens(context)[: len(taken)]
            assert (await rig.infer(restored.context.id, (), 5)).tokens == oracle(taken, 5)
        rig.check()


@in_loop
async def test_a_caller_that_leaves_during_a_checkpoint_leaves_no_pages_held(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 22), 8)
        await rig.settle()
        rig.worker.hold()
        saving = asyncio.ensure_future(rig.kernel.checkpoint(ANN, CheckpointArgs(context)))
        await rig.until(lambda: not rig.machine.devices.first.dispatcher.is_idle)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)
        rig.worker.release()
        table = rig.machine.contexts.find(context).table  # type: ignore[union-attr]
        assert table is not None
        assert not table.holds
        await rig.kernel.free(ANN, context)
        await rig.settle()
        rig.check()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def page_files(rig: Rig) -> dict[Path, int]:
    """Page files of all images, with their inodes: one that is written again has another."""
    return {path: path.stat().st_ino for path in (rig.state / "images" / "pages").rglob("*") if path.is_file()}


@in_loop
async def test_a_damaged_manifest_leaves_no_context_behind(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        spoil(rig.state / "images" / "manifests" / image.id)
        with pytest.raises(DataLoss):
            await rig.kernel.restore(ANN, image.id, {})
        assert len(rig.machine.contexts) == 1
        assert (await rig.kernel.verify_image(ANN, image.id)).problems


@in_loop
async def test_what_a_damaged_page_held_is_computed_again_and_the_answer_says_so(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 41), 8)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        await rig.kernel.free(ANN, context)
        manifest = rig.machine.images.read(image.id, rig.machine.tenants.get("lab/ann").secret)
        for page_idx in (4, 7):
            spoil(rig.state / "images" / "pages" / manifest.pages[page_idx].name[:2] / manifest.pages[page_idx].name)

        verified = await rig.kernel.verify_image(ANN, image.id)
        restored = await rig.kernel.restore(ANN, image.id, {})

        assert [f"page {page_idx} of group 0" in problem for page_idx, problem in zip((4, 7), verified.problems, strict=True)] == [True] * 2
        assert restored.pages_restored == 4
        assert "page 4 of group 0" in restored.recompute_reason
        past = rig.tokens(restored.context.id)
        assert (await rig.infer(restored.context.id, (), 5)).tokens == oracle(past, 5)


@in_loop
async def test_verify_reads_everything_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 41), 8)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        whole = await rig.kernel.verify_image(ANN, image.id)
        for path in page_files(rig):
            spoil(path)
        damaged = await rig.kernel.verify_image(ANN, image.id)

        assert (whole.problems, whole.bytes_read) == ((), image.size_bytes)
        assert len(damaged.problems) == image.num_pages == len(page_files(rig))


@in_loop
async def test_a_second_checkpoint_writes_only_what_changed(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 41), 8)  # twelve full pages
        await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        first = page_files(rig)
        await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        same = page_files(rig)
        await rig.infer(context, prompt_of(2, 6), 2)
        await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        more = page_files(rig)

        assert same == first
        assert len(first) == 12
        assert {path: more[path] for path in first} == first
        assert len(more) - len(first) == 2


@in_loop
async def test_forks_share_their_pages_on_disk(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, 41), 8)
        await rig.kernel.checkpoint(ANN, CheckpointArgs(parent))
        before = page_files(rig)
        forks = [(await rig.kernel.fork(ANN, ForkArgs(parent))).id for _ in range(3)]
        for number, fork in enumerate(forks):
            await rig.infer(fork, prompt_of(10 + number, 4), 4)
        images = [await rig.kernel.checkpoint(ANN, CheckpointArgs(fork)) for fork in forks]

        assert {path: page_files(rig)[path] for path in before} == before
        assert len(page_files(rig)) - len(before) == sum(image.num_pages - 12 for image in images)
        for image in images[1:]:
            await rig.kernel.delete_image(ANN, image.id)
        assert not (await rig.kernel.verify_image(ANN, images[0].id)).problems


@in_loop
async def test_an_image_is_its_owners_alone(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        assert not (await rig.kernel.list_images(BOB, ListArgs())).items
        for call in (
            rig.kernel.restore(BOB, image.id, {}),
            rig.kernel.verify_image(BOB, image.id),
            rig.kernel.delete_image(BOB, image.id),
            rig.kernel.checkpoint(BOB, CheckpointArgs(context)),
        ):
            with pytest.raises(NotFound):
                await call
        await rig.kernel.delete_image(ANN, image.id)
        assert not (await rig.kernel.list_images(ANN, ListArgs())).items


@in_loop
async def test_a_full_host_tier_restores_what_fits_and_computes_the_rest(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=16, host_slabs=1))) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 90), 8)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        restored = await rig.kernel.restore(ANN, image.id, {})
        assert (await rig.infer(restored.context.id, (), 5)).tokens == oracle(rig.tokens(context), 5)
        rig.check()


@in_loop
async def test_an_image_outlives_daemon_and_context(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        past = rig.tokens(context)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        await rig.kernel.free(ANN, context)
        await rig.die_and_return()
        await rig.until(lambda: rig.machine.devices.first.models.get("m").is_resident)
        restored = await rig.kernel.restore(ANN, image.id, {"again": "1"})
        assert restored.pages_restored == image.num_pages
        assert rig.stat(restored.context.id).labels == {"again": "1"}
        assert (await rig.infer(restored.context.id, (), 5)).tokens == oracle(past, 5)
