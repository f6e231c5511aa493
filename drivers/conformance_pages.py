"""Checks of pages: what a row reads is what its page table names, wherever the page has been meanwhile."""

from __future__ import annotations

import os

from drivers.conformance_bench import PAGE_TOKENS, Bench, Frames, Generated, How, Late, Subject, page_key, require
from drivers.contract import CopyTimes, RowRun, Sampling
from drivers.errors import PageCorrupt
from drivers.page_header import HEADER_BYTES
from memory.page import Tier, Zero

TO_HOST = (Tier.DEVICE, Tier.HOST)
FROM_HOST = (Tier.HOST, Tier.DEVICE)
ON_DEVICE = (Tier.DEVICE, Tier.DEVICE)
TOLD = Sampling(temperature=0.0, num_logprobs=4)


def resume_through_the_host_tier(subject: Subject) -> None:
    """A row whose pages went to the host tier, whose frames were zeroed, and whose pages came back elsewhere, goes on the same."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        host = bench.take_host(begun.frames)
        bench.submit(pages=bench.moves(begun.frames, host, TO_HOST))
        bench.submit(pages=_zeros(bench, begun.frames))
        back = bench.take(64)
        bench.submit(pages=bench.moves(host, back, FROM_HOST))
        require(_go_on(bench, prompt, begun, back).tokens == undisturbed.tokens[10:], "pages from the host tier give the same tokens")


def recompute_gives_the_same(subject: Subject) -> None:
    """A row whose pages are lost and computed again from its tokens goes on the same."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        again = bench.generate(prompt + begun.tokens, 14, How(chunk=13))
        require(again.tokens == undisturbed.tokens[10:], "recomputed pages give the same tokens")


def copies_are_copies(subject: Subject) -> None:
    """A page copied on the device serves another row, and what that row writes does not reach the original."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        copies = bench.take(64)
        bench.submit(pages=bench.moves(begun.frames, copies, ON_DEVICE))
        stranger = prompt + begun.tokens[:9] + bench.prompt(1, salt=5)
        bench.generate(stranger, 8, How(position=len(stranger) - 1, frames=copies))
        require(_go_on(bench, prompt, begun, begun.frames).tokens == undisturbed.tokens[10:], "writes to a copy leave the original alone")
        bench.submit(pages=bench.moves(begun.frames, copies, ON_DEVICE))
        require(_go_on(bench, prompt, begun, copies).tokens == undisturbed.tokens[10:], "a copy serves like the original")


def full_pages_are_shared(subject: Subject) -> None:
    """Two rows may read the same full pages at once."""
    with subject.bench() as bench:
        prompt = bench.prompt(2 * PAGE_TOKENS + 1)
        expected = bench.generate(prompt, 6)
        own = bench.take(64)
        shared = tuple(old[:2] + new[2:] for old, new in zip(expected.frames, own, strict=True))
        hows = [How(slot=0, position=2 * PAGE_TOKENS, frames=expected.frames), How(slot=1, position=2 * PAGE_TOKENS, frames=shared)]
        starts = tuple(bench.start(prompt, how.frames, how) for how in hows)
        steps = bench.submit(6, starts=starts, runs=(RowRun(0, 1), RowRun(1, 1)))
        for slot in (0, 1):
            tokens = tuple(token for step in steps for row in step.rows if row.slot == slot for token in row.tokens)
            require(tokens == expected.tokens, f"the row in slot {slot} reads the shared pages")


def zeroed_frames_are_seen(subject: Subject) -> None:
    """A row over frames that were zeroed does not go on as if they still held its pages."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        bench.submit(pages=_zeros(bench, begun.frames))
        gone = _go_on(bench, prompt, begun, begun.frames)
        is_error = bool(gone.results[0].error)
        require(is_error or gone.logprobs != undisturbed.logprobs[10:], "nothing of a zeroed page is left")


def zeroed_host_frames_hold_nothing(subject: Subject) -> None:
    """A host frame that was zeroed holds neither header nor payload."""
    with subject.bench() as bench:
        _, _, begun = _begin(bench)
        host = bench.take_host(begun.frames)
        bench.submit(pages=bench.moves(begun.frames, host, TO_HOST))
        require(all(bench.host.peek(frame) is not None for row in host for frame in row), "every page is there before")
        bench.submit(pages=_zeros(bench, host, Tier.HOST))
        require(all(bench.host.peek(frame) is None for row in host for frame in row), "no page is there after")
        require(not any(os.pread(bench.host.fd, bench.host.size_bytes, 0)), "no byte is left")


def host_pages_say_what_they_are(subject: Subject) -> None:
    """A page in the host tier carries its key, its space and its number of tokens, and its checksum holds."""
    with subject.bench() as bench:
        _, _, begun = _begin(bench)
        host = bench.take_host(begun.frames)
        bench.submit(pages=bench.moves(begun.frames, host, TO_HOST))
        for group, row in enumerate(host):
            for idx, frame in enumerate(row):
                header = bench.host.peek(frame)
                require(header is not None, "the frame holds a page")
                if header is not None:
                    told = (header.key, header.space_id, header.num_tokens)
                    require(told == (page_key(group, idx), bench.space(group), PAGE_TOKENS), "key, space and tokens are those of the move")
                require(len(bench.host.payload(frame)) == bench.model.groups[group].frame_bytes, "the payload is the whole device frame")


def corrupt_page_is_named(subject: Subject) -> None:
    """PageCorrupt names the moves whose source is damaged or has another key; the others are made, and rows are not touched."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        host = bench.take_host(begun.frames)
        bench.submit(pages=bench.moves(begun.frames, host, TO_HOST))
        back = bench.take(64)
        moves = bench.moves(host, back, FROM_HOST)
        _flip(bench, moves[1].source_frame)
        wrong_key = moves[0]._replace(key=b"another page key")
        asked = (wrong_key, *moves[1:])
        start = bench.start(prompt + begun.tokens, back, How(position=len(prompt) + 9))
        try:
            bench.submit(pages=asked, starts=(start,))
            require(False, "a corrupt source raises PageCorrupt")
        except PageCorrupt as error:
            require(error.move_idxs == (0, 1), f"moves 0 and 1 are named, not {error.move_idxs}")
        _flip(bench, moves[1].source_frame)
        bench.submit(pages=moves[:2])
        require(_go_on(bench, prompt, begun, back).tokens == undisturbed.tokens[10:], "the other moves were made, and slot 0 stayed free")


def copies_are_told_once(subject: Subject) -> None:
    """What a driver tells of copies is nothing, or the bytes of the moves between the tiers and a time; asked again, nothing."""
    with subject.bench() as bench:
        _, _, begun = _begin(bench)
        host, back = bench.take_host(begun.frames), bench.take(64)
        size = sum(group.frame_bytes * len(row) for group, row in zip(bench.model.groups, host, strict=True))
        bench.driver.copied()
        bench.submit(pages=bench.moves(begun.frames, host, TO_HOST))
        down = bench.driver.copied()
        bench.submit(pages=(*bench.moves(host, back, FROM_HOST), *bench.moves(begun.frames, bench.take(64), ON_DEVICE)))
        up = bench.driver.copied()
        require(bench.driver.copied() == CopyTimes(), "nothing is told twice")
        if up.up_bytes or down.down_bytes:
            told = (down.up_bytes, down.down_bytes, up.up_bytes, up.down_bytes)
            require(told == (0, size, size, 0), f"bytes down and up are {size} each, not {told}")
            require(down.down_s > 0.0 and up.up_s > 0.0, "copies that are told take time")


def zeros_come_before_moves(subject: Subject) -> None:
    """A plan that zeroes a frame and moves a page into it leaves the page there."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        copies = bench.take(64)
        bench.submit(pages=(*bench.moves(begun.frames, copies, ON_DEVICE), *_zeros(bench, copies)))
        require(_go_on(bench, prompt, begun, copies).tokens == undisturbed.tokens[10:], "zeros are made first")


def late_zeros_come_after_moves(subject: Subject) -> None:
    """A plan that copies a page away and zeroes its frame late leaves the copy whole, and nothing in the frame."""
    with subject.bench() as bench:
        prompt, undisturbed, begun = _begin(bench)
        copies = bench.take(64)
        bench.submit(pages=(*map(Late, _zeros(bench, begun.frames)), *bench.moves(begun.frames, copies, ON_DEVICE)))
        require(_go_on(bench, prompt, begun, copies).tokens == undisturbed.tokens[10:], "the copy was made before")
        gone = _go_on(bench, prompt, begun, begun.frames)
        require(bool(gone.results[0].error) or gone.logprobs != undisturbed.logprobs[10:], "nothing is left in the frame")


def _begin(bench: Bench) -> tuple[tuple[int, ...], Generated, Generated]:
    """Return a prompt, what a row gives from it undisturbed, and the first ten tokens of another with the frames that it leaves behind."""
    prompt = bench.prompt(37)
    undisturbed = bench.generate(prompt, 24, How(sampling=TOLD, frames=bench.take(64)))
    return prompt, undisturbed, bench.generate(prompt, 10, How(frames=bench.take(64)))


def _go_on(bench: Bench, prompt: tuple[int, ...], begun: Generated, frames: Frames) -> Generated:
    """Return what a row gives that goes on behind its tenth token, over `frames`."""
    tokens = prompt + begun.tokens
    return bench.generate(tokens, 14, How(position=len(tokens) - 1, frames=frames, sampling=TOLD))


def _zeros(bench: Bench, frames: Frames, tier: Tier = Tier.DEVICE) -> tuple[Zero, ...]:
    return tuple(Zero(bench.space(group), tier, frame) for group, row in enumerate(frames) for frame in row)


def _flip(bench: Bench, host_frame: int) -> None:
    """Flip a bit in the payload of a host frame; done twice it is whole again."""
    offset = host_frame * bench.host.granule_bytes + HEADER_BYTES + 3
    byte = os.pread(bench.host.fd, 1, offset)[0]
    os.pwrite(bench.host.fd, bytes([byte ^ 0x10]), offset)


CHECKS = (
    resume_through_the_host_tier,
    recompute_gives_the_same,
    copies_are_copies,
    full_pages_are_shared,
    zeroed_frames_are_seen,
    zeroed_host_frames_hold_nothing,
    host_pages_say_what_they_are,
    corrupt_page_is_named,
    copies_are_told_once,
    zeros_come_before_moves,
    late_zeros_come_after_moves,
)
