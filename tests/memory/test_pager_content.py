"""What contexts see through their frames, whatever verbs, plans, aborts and deaths come in between.

A simulated worker carries plans out on two bytearrays, in order and no sooner than it must; the machine then looks at bytes. Every token of
every context has a number of its own, and the bytes say who wrote it, so a wrong, stale or foreign page cannot look right.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memory.config import MemoryConfig
from memory.costs import Link
from memory.errors import NeverFits, OutOfFrames, OverLimit, PagingError
from memory.page import Move, PagePlan, Space, Tier, Transfer, Zero
from memory.pager import Pager, Want
from memory.table import Page, PageTable

GRANULE, SLAB = 16, 128
PAGE_TOKENS = 4
NUM_DEVICE_SLABS, NUM_HOST_SLABS, NUM_DISK_SLABS = 7, 5, 6
HEADER = 16
SPACES = {
    1: Space(1, PAGE_TOKENS, 16, 32),
    2: Space(2, PAGE_TOKENS, 32, 48),
    3: Space(3, PAGE_TOKENS, 48, 64),
}
MODELS = ((1,), (2, 3))
OWNERS = ("lab/ann", "lab/bob", "guest")
WEIGHTS = 0xEEEEEEEE


@dataclass(eq=False)
class Ctx:
    """A context: what its tokens are, and how far they are computed."""

    table: PageTable
    owner: str
    kin: set[int]  # owners whose stamps its frames may hold: its own and those it was forked from
    tokens: list[int] = field(default_factory=list)  # stamps; index = position
    valid: int = 0  # computed by plans that are committed
    reach: int = 0  # computed once all outstanding plans are done
    is_dropped: bool = False


@dataclass
class Row:
    """A context's part in a plan, as the worker was told of it."""

    ctx: Ctx
    start: int
    tokens: list[int]  # [0, end)
    frames: list[list[int]]


@dataclass(eq=False)
class Flight:
    """A plan on its way."""

    plan: PagePlan
    rows: list[Row]
    before: Snapshot
    num_changes: int
    is_run: bool = False


def stamp_of(owner: str, token: int) -> int:
    """What an owner's row writes for a token."""
    return (OWNERS.index(owner) + 1) << 24 | token


def tokens_in(stamps: set[int]) -> set[int]:
    """Tokens of stamps, whoever wrote them."""
    return {stamp & 0xFFFFFF for stamp in stamps}


def shelf_of(name: str) -> Tier:
    """Where weights of that name lie."""
    return Tier.HOST if name.startswith("h") else Tier.DEVICE


class KeyMismatch(Exception):
    """A move found another page in the host tier than it was told."""


class Worker:
    """Carries out plans on bytes."""

    def __init__(self) -> None:
        sizes = {Tier.DEVICE: NUM_DEVICE_SLABS, Tier.HOST: NUM_HOST_SLABS, Tier.DISK: NUM_DISK_SLABS}
        self.bytes = {tier: bytearray(num_slabs * SLAB) for tier, num_slabs in sizes.items()}

    def span(self, space_id: int, tier: Tier, frame: int) -> slice:
        space = SPACES[space_id]
        size = space.device_frame_bytes if tier is Tier.DEVICE else space.host_frame_bytes
        assert (frame + size // GRANULE) * GRANULE <= len(self.bytes[tier])
        return slice(frame * GRANULE, frame * GRANULE + size)

    def zero(self, zero: Zero) -> None:
        span = self.span(zero.space_id, zero.tier, zero.frame)
        self.bytes[zero.tier][span] = bytes(span.stop - span.start)

    def payload(self, space_id: int, tier: Tier, frame: int) -> slice:
        start = frame * GRANULE + (0 if tier is Tier.DEVICE else HEADER)
        return slice(start, start + SPACES[space_id].device_frame_bytes)

    def move(self, move: Move) -> None:
        source = self.payload(move.space_id, move.source_tier, move.source_frame)
        if move.source_tier is Tier.HOST and self.key(move.source_frame) != move.key:
            raise KeyMismatch
        target = self.payload(move.space_id, move.target_tier, move.target_frame)
        self.bytes[move.target_tier][target] = self.bytes[move.source_tier][source]
        if move.target_tier is Tier.HOST:
            assert len(move.key) == 16, "the host tier keeps pages by name"
            self.set_key(move.target_frame, move.key)

    def key(self, frame: int, tier: Tier = Tier.HOST) -> bytes:
        return bytes(self.bytes[tier][frame * GRANULE : frame * GRANULE + HEADER])

    def carry(self, transfer: Transfer, *, whole: bool) -> bool:
        """What the front does with a transfer, or begins to do; returns whether it went well."""
        tiers = (Tier.DISK, Tier.HOST) if transfer.is_fetch else (Tier.HOST, Tier.DISK)
        frames = (transfer.disk_frame, transfer.host_frame) if transfer.is_fetch else (transfer.host_frame, transfer.disk_frame)
        is_good = self.key(frames[0], tiers[0]) == transfer.key
        source, target = (self.span(transfer.space_id, tier, frame) for tier, frame in zip(tiers, frames, strict=True))
        size = transfer.size_bytes if whole else transfer.size_bytes // 2
        self.bytes[tiers[1]][target.start : target.start + size] = self.bytes[tiers[0]][source.start : source.start + size]
        return is_good and whole

    def set_key(self, frame: int, key: bytes) -> None:
        self.bytes[Tier.HOST][frame * GRANULE : frame * GRANULE + HEADER] = key

    def apply(self, plan: PagePlan, bad: tuple[int, ...] = ()) -> None:
        for zero in plan.zeros:
            self.zero(zero)
        for idx, move in enumerate(plan.moves):
            if idx not in bad:
                self.move(move)
        for zero in plan.late_zeros:
            self.zero(zero)

    def write(self, space_id: int, tier: Tier, frame: int, idx: int, stamp: int) -> None:
        size = SPACES[space_id].device_frame_bytes // PAGE_TOKENS
        start = self.payload(space_id, tier, frame).start + idx * size
        self.bytes[tier][start : start + size] = struct.pack("<I", stamp) * (size // 4)

    def stamps(self, space_id: int, tier: Tier, frame: int) -> list[set[int]]:
        """Stamps at each token of a frame; one each, if all is well."""
        size = SPACES[space_id].device_frame_bytes // PAGE_TOKENS
        payload = bytes(self.bytes[tier][self.payload(space_id, tier, frame)])
        return [set(struct.unpack(f"<{size // 4}I", payload[idx * size : (idx + 1) * size])) for idx in range(PAGE_TOKENS)]

    def fill(self, start: int, size: int, word: int, tier: Tier = Tier.DEVICE) -> None:
        self.bytes[tier][start : start + size] = struct.pack("<I", word) * (size // 4)


@dataclass
class Snapshot:
    """Everything that an abort has to bring back, and what may only grow: whose bytes may be where."""

    state: tuple[object, ...]
    residues: dict[tuple[Tier, int], frozenset[str]]

    def is_back(self, now: Snapshot) -> bool:
        return self.state == now.state and all(now.residues[place] >= residue for place, residue in self.residues.items())


def snapshot(pager: Pager, ctxs: list[Ctx]) -> Snapshot:
    """What there is now."""
    mapping = pager._mapping
    pools = {
        (tier, space_id): (
            sorted(pool.slabs()),
            pool.limbo(),
            [f for s in sorted(pool.slabs()) for f in pool.frames_of(s) if pool.is_free(f)],
        )
        for tier in Tier
        for space_id, pool in mapping.pools(tier).items()
    }
    residues = {
        (tier, frame): pool.residue(frame)
        for tier in (Tier.DEVICE, Tier.HOST)
        for pool in mapping.pools(tier).values()
        for slab in pool.slabs()
        for frame in pool.frames_of(slab)
    }
    tables = [[[describe(page) for page in pages] for pages in ctx.table.pages] for ctx in ctxs]
    reaches = [(ctx.table.reach, ctx.table.pins, ctx.table.counts(), ctx.table.device_bytes) for ctx in ctxs]
    return Snapshot((pools, tables, reaches, pager.ledger.snapshot()), residues)


def describe(page: Page) -> tuple[object, ...]:
    """A page as it must be again after an abort."""
    key = page.key if page.is_below else b""
    frames = page.device_frame, page.host_frame, page.disk_frame
    return id(page), frames, page.num_tokens, key, page.pins, [id(table) for table in page.holders]


class PagerContent(RuleBasedStateMachine):
    """Verbs and plans in any order, two plans outstanding, a worker that is late."""

    @initialize(
        write_behind=st.booleans(),
        device=st.integers(3, NUM_DEVICE_SLABS),
        host=st.integers(0, NUM_HOST_SLABS),
        disk=st.integers(0, NUM_DISK_SLABS),
        limit=st.booleans(),
    )
    def start(self, write_behind: bool, device: int, host: int, disk: int, limit: bool) -> None:
        config = MemoryConfig(
            device_bytes=device * SLAB,
            host_bytes=host * SLAB,
            page_file_bytes=disk * SLAB if host else 0,
            page_tokens=PAGE_TOKENS,
            slab_bytes=SLAB,
            granule_bytes=GRANULE,
            write_behind=write_behind,
            max_copies=3,
            compact_ratio=0.01 if device % 2 else 1.1,
            device_low=0.5,
            device_high=0.8,
            host_low=0.3,
            host_high=0.6,
            host_clean=(0.5, 1.0, 0.0)[disk % 3],
            prefix_cache_bytes=SLAB if host % 2 else 0,
        )
        self.pager = Pager(config)
        if device % 2:  # the test's way to have pages move in so small an arena
            self.pager._planner.compactor.slack, self.pager._planner.compactor.max_rest = -NUM_DEVICE_SLABS, 0
        self.has_disk = config.page_file_bytes > 0
        for space in SPACES.values():
            self.pager.open_space(space)
        self.pager.ledger.set_limit("lab/ann", Tier.DISK, 0, SLAB)
        self.has_limits = limit
        if limit:
            self.pager.ledger.set_limit("lab", Tier.DEVICE, 0, 2 * SLAB)
            self.pager.ledger.set_limit("lab/bob", Tier.HOST, 0, SLAB)
        self.worker = Worker()
        self.ctxs: list[Ctx] = []
        self.flights: list[Flight] = []
        self.seq = 0
        self.num_tokens = 0
        self.num_keys = 0
        self.num_changes = 0  # verbs between plans
        self.weights: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.holds: list[tuple[Ctx, dict[int, bytes]]] = []
        self.transfers: list[tuple[Transfer, bool | None]] = []  # on their way, and how they went where they are done
        self.punching: list[tuple[int, int]] = []
        for owner in OWNERS:
            for model in MODELS:
                self.alloc(owner, model)

    # ------------------------------------------------------------------------------------------------------------------ inner steps

    def new_token(self) -> int:
        self.num_tokens += 1
        return self.num_tokens

    def keys_of(self, ctx: Ctx, num_tokens: int) -> list[bytes]:
        pages = [ctx.tokens[first : first + PAGE_TOKENS] for first in range(0, num_tokens - PAGE_TOKENS + 1, PAGE_TOKENS)]
        return [struct.pack("<4I", *page) for page in pages]

    def live(self) -> list[Ctx]:
        return [ctx for ctx in self.ctxs if not ctx.is_dropped]

    def pick(self, number: int) -> Ctx | None:
        live = self.live()
        return live[number % len(live)] if live else None

    def is_flying(self, ctx: Ctx) -> bool:
        return any(row.ctx is ctx for flight in self.flights for row in flight.rows)

    def settle(self, ctx: Ctx) -> None:
        """What a context may go on from: tokens whose pages are somewhere."""
        ctx.valid = min(ctx.valid, ctx.table.intact_tokens())
        if not self.is_flying(ctx):
            ctx.reach = ctx.valid

    def approach(self, ctx: Ctx) -> None:
        """What a plan may go on from: tokens whose pages are on the device or on the host, unless computing them is cheaper."""
        ctx.valid = min(ctx.valid, ctx.table.at_hand_tokens(), self.pager.costs.choose(ctx.table, ctx.valid, "").keep_tokens)
        self.settle(ctx)

    def run(self, flight: Flight) -> None:
        if flight.is_run:
            return
        flight.is_run = True
        self.worker.apply(flight.plan)
        for row in flight.rows:
            for group, frames in enumerate(row.frames):
                self.check_row(row, group, frames)
                for position in range(row.start, len(row.tokens)):
                    frame = frames[position // PAGE_TOKENS]
                    stamp = stamp_of(row.ctx.owner, row.tokens[position])
                    self.worker.write(row.ctx.table.space_ids[group], Tier.DEVICE, frame, position % PAGE_TOKENS, stamp)

    def check_row(self, row: Row, group: int, frames: list[int]) -> None:
        assert len(frames) * PAGE_TOKENS >= len(row.tokens)
        space_id = row.ctx.table.space_ids[group]
        for page_idx, frame in enumerate(frames[: -(-len(row.tokens) // PAGE_TOKENS)]):
            for idx, found in enumerate(self.worker.stamps(space_id, Tier.DEVICE, frame)):
                position = page_idx * PAGE_TOKENS + idx
                if position < row.start:
                    assert tokens_in(found) == {row.tokens[position]}, "a context sees its own tokens"
                else:
                    assert {stamp >> 24 for stamp in found} <= row.ctx.kin | {0}, "no owner sees another's bytes"

    # ------------------------------------------------------------------------------------------------------------------ verbs

    @rule(owner=st.sampled_from(OWNERS), model=st.sampled_from(MODELS))
    def alloc(self, owner: str, model: tuple[int, ...]) -> None:
        if len(self.live()) < 8:
            self.ctxs.append(Ctx(self.pager.new_table(owner, model), owner, {OWNERS.index(owner) + 1}))
            self.num_changes += 1

    @rule(number=st.integers(0, 9), cut=st.integers(0, 9), owner=st.sampled_from(OWNERS))
    def fork(self, number: int, cut: int, owner: str) -> None:
        parent = self.pick(number)
        if parent is None or len(self.live()) >= 10:
            return
        num_tokens = max(parent.valid - cut, 0)
        table = self.pager.fork(parent.table, num_tokens, owner)
        kin = parent.kin | {OWNERS.index(owner) + 1}
        self.ctxs.append(Ctx(table, owner, kin, parent.tokens[:num_tokens], num_tokens, num_tokens))
        self.join(kin)
        self.num_changes += 1

    def join(self, kin: set[int]) -> None:
        """Whoever shares a page may write into it when the others left: its kin's frames may hold its stamps from now on."""
        for ctx in self.ctxs:
            if ctx.kin & kin:
                ctx.kin = kin = ctx.kin | kin

    @rule(owner=st.sampled_from(OWNERS), cut=st.integers(0, 5))
    def repeat(self, owner: str, cut: int) -> None:
        """Somebody begins with the same tokens as the one who has computed most, and takes what there is."""
        live = self.live()
        if not live:
            return
        if len(live) > 8:
            self.drop(self.num_tokens, 0)
        other = max(live, key=lambda ctx: ctx.valid)
        table = self.pager.new_table(owner, other.table.space_ids)
        self.ctxs.append(Ctx(table, owner, {OWNERS.index(owner) + 1}, list(other.tokens)))
        self.share(len(self.live()) - 1, cut)

    @rule(number=st.integers(0, 9), cut=st.integers(0, 5))
    def share(self, number: int, cut: int) -> None:
        """A context takes what others have computed of its tokens."""
        ctx = self.pick(number)
        if ctx is None or self.is_flying(ctx):
            return
        self.settle(ctx)
        won = self.pager.sharing.share(ctx.table, ctx.valid, self.keys_of(ctx, max(len(ctx.tokens) - cut, 0)))
        assert ctx.valid <= won <= len(ctx.tokens), "nothing is lost by sharing"
        ctx.valid = ctx.reach = won
        held = [{id(page) for pages in other.table.pages for page in pages} for other in self.ctxs]
        own = held[self.ctxs.index(ctx)]
        self.join({stamp for other, pages in zip(self.ctxs, held, strict=True) if pages & own for stamp in other.kin})
        self.num_changes += 1

    @rule(number=st.integers(0, 9), cut=st.integers(0, 9))
    def truncate(self, number: int, cut: int) -> None:
        ctx = self.pick(number)
        if ctx is None:
            return
        ctx.valid = max(ctx.valid - cut, 0)
        if self.is_flying(ctx):
            return
        del ctx.tokens[ctx.valid :]
        ctx.reach = ctx.valid
        self.pager.truncate(ctx.table, ctx.valid)
        self.num_changes += 1

    @rule(number=st.integers(0, 9), chance=st.integers(0, 5))
    def drop(self, number: int, chance: int) -> None:
        ctx = self.pick(number)
        if ctx is not None and chance == 0:
            (self.pager.drop if number % 2 else self.pager.sharing.retain)(ctx.table)
            ctx.is_dropped = True
            self.num_changes += 1

    @rule(number=st.integers(0, 9), suspends=st.booleans())
    def suspend(self, number: int, suspends: bool) -> None:
        ctx = self.pick(number)
        if ctx is not None:
            (self.pager.suspend if suspends else self.pager.resume)(ctx.table)

    @rule(number=st.integers(0, 9))
    def save(self, number: int) -> None:
        ctx = self.pick(number)
        if ctx is None or self.is_flying(ctx) or ctx.valid == 0:
            return
        self.settle(ctx)
        self.num_keys += 1
        keys = self.keys_of(ctx, ctx.valid)
        self.pager.save(ctx.table, ctx.valid, keys, b"partial\0" + self.num_keys.to_bytes(8, "little"))
        self.num_changes += 1

    @rule(number=st.integers(0, 9))
    def hold(self, number: int) -> None:
        ctx = self.pick(number)
        if ctx is None or len(self.holds) > 2:
            return
        self.pager.hold_host(ctx.table)
        host = self.worker.bytes[Tier.HOST]
        spans = [self.worker.span(ctx.table.space_ids[page.group], Tier.HOST, page.frame) for page in self.pager.host_pages(ctx.table)]
        self.holds.append((ctx, {span.start: bytes(host[span]) for span in spans}))

    @precondition(lambda self: self.holds)
    @rule()
    def release(self) -> None:
        ctx, _bytes = self.holds.pop()
        self.pager.release_host(ctx.table)
        self.num_changes += 1

    @rule(number=st.integers(0, 9), count=st.integers(1, 3))
    def restore(self, number: int, count: int) -> None:
        """The front writes lost pages of a context from an image, while plans are on their way."""
        ctx = self.pick(number)
        if ctx is None or self.is_flying(ctx):
            return
        self.settle(ctx)
        for page_idx in range(ctx.valid // PAGE_TOKENS, min(ctx.valid // PAGE_TOKENS + count, len(ctx.tokens) // PAGE_TOKENS)):
            if not all(page_idx >= len(pages) or pages[page_idx].is_lost for pages in ctx.table.pages):
                return
            tokens = ctx.tokens[page_idx * PAGE_TOKENS : (page_idx + 1) * PAGE_TOKENS]
            for group, space_id in enumerate(ctx.table.space_ids):
                try:
                    frame = self.pager.reserve_host(ctx.table, group, page_idx, struct.pack("<4I", *tokens), PAGE_TOKENS)
                except (OutOfFrames, OverLimit, PagingError):
                    self.trim(ctx, page_idx)
                    return
                self.worker.set_key(frame, struct.pack("<4I", *tokens))
                for idx, token in enumerate(tokens):
                    self.worker.write(space_id, Tier.HOST, frame, idx, stamp_of(ctx.owner, token))
            self.num_changes += 1
            ctx.valid = ctx.reach = (page_idx + 1) * PAGE_TOKENS

    def trim(self, ctx: Ctx, num_pages: int) -> None:
        """A restore stopped half way: its groups are of equal length again."""
        self.pager.truncate(ctx.table, num_pages * PAGE_TOKENS)
        self.settle(ctx)
        self.num_changes += 1

    # ------------------------------------------------------------------------------------------------------------------ disk

    @rule(max_bytes=st.sampled_from((48, 128, 1000)), ahead_bytes=st.sampled_from((0, 100, 1000)))
    def spill(self, max_bytes: int, ahead_bytes: int) -> None:
        saved = self.saved_pages()
        is_due = self.is_spill_due()
        transfers = self.pager.spill(max_bytes, ahead_bytes)
        assert is_due or self.saved_pages() == saved, "no copy goes for those that are made ahead of need"
        assert sum(transfer.size_bytes for transfer in transfers) <= max_bytes
        assert not any(transfer.is_fetch for transfer in transfers)
        self.transfers.extend((transfer, None) for transfer in transfers)
        self.num_changes += 1

    def saved_pages(self) -> list[tuple[int | None, int | None]]:
        """Where every page of a context is on host and disk."""
        pages = [page for ctx in self.live() for pages in ctx.table.pages for page in pages]
        return [(page.host_frame, page.disk_frame) for page in pages]

    def is_spill_due(self) -> bool:
        """Whether something has to go to disk, or to leave it, whatever may go ahead of need."""
        disk = self.pager._disk
        return disk._marks.missing() > 0 or bool(disk._burials()) or bool(self.pager.ledger.in_excess(Tier.DISK))

    @rule(number=st.integers(0, 9), whole=st.booleans(), may_lose=st.booleans())
    def fetch(self, number: int, whole: bool, may_lose: bool) -> None:
        """A context comes back; the front waits for its pages, or does something else first."""
        ctx = self.pick(number)
        if ctx is None or self.is_flying(ctx):
            return
        self.settle(ctx)
        num_lost = sum(other.table.counts().lost for other in self.live())
        transfers = self.pager.fetch(ctx.table, ctx.valid, may_lose=may_lose)
        assert may_lose or sum(other.table.counts().lost for other in self.live()) == num_lost
        assert all(transfer.is_fetch for transfer in transfers)
        assert len(transfers) <= self.pager.num_fetching(ctx.table, ctx.valid)
        self.transfers.extend((transfer, None) for transfer in transfers)
        self.num_changes += 1
        if whole:
            while any(transfer in transfers for transfer, _is_good in self.transfers):
                self.transferred(next(idx for idx, (transfer, _is_good) in enumerate(self.transfers) if transfer in transfers), 1)

    @rule(number=st.integers(0, 9))
    def unfetch(self, number: int) -> None:
        ctx = self.pick(number)
        if ctx is not None:
            self.pager.unfetch(ctx.table)

    @precondition(lambda self: self.transfers)
    @rule(which=st.integers(0, 9), whole=st.booleans())
    def carry(self, which: int, whole: bool) -> None:
        """The front copies a page; the pager does not hear of it yet."""
        idx = which % len(self.transfers)
        transfer, is_good = self.transfers[idx]
        if is_good is None:
            self.transfers[idx] = transfer, self.worker.carry(transfer, whole=whole)

    @precondition(lambda self: self.transfers)
    @rule(which=st.integers(0, 9), chance=st.integers(0, 4))
    def transferred(self, which: int, chance: int) -> None:
        transfer, is_good = self.transfers.pop(which % len(self.transfers))
        if is_good is None:
            is_good = self.worker.carry(transfer, whole=chance > 0)
        self.pager.transferred(transfer.ticket, is_good)
        self.num_changes += 1
        for ctx in self.live():
            self.settle(ctx)

    @rule()
    def punch(self) -> None:
        """What the latest look found is punched; then comes the next look."""
        for frame, size in self.punching:
            self.worker.bytes[Tier.DISK][frame * GRANULE : frame * GRANULE + size] = bytes(size)
            self.pager.punched(frame)
        self.punching = self.pager.take_freed_disk(4)
        self.num_changes += 1

    @rule(number=st.integers(0, 9), whole=st.booleans())
    def bury(self, number: int, whole: bool) -> None:
        ctx = self.pick(number)
        if ctx is None or self.is_flying(ctx) or not self.has_disk:
            return
        self.settle(ctx)
        del ctx.tokens[ctx.valid :]
        self.num_keys += 1
        keys = self.keys_of(ctx, ctx.valid)
        self.pager.bury(ctx.table, ctx.valid, keys, b"partial\0" + self.num_keys.to_bytes(8, "little"))
        self.num_changes += 1
        if whole:
            self.finish_burial(ctx)

    def finish_burial(self, ctx: Ctx) -> None:
        """The front does what a burial takes, as long as something happens."""
        for _ in range(20):
            if self.pager.has_backlog() and not self.flights:
                self.try_plan([])
                self.commit()
            self.spill(1000, 0)
            while self.transfers:
                self.transferred(0, 1)
            self.punch()
        counts = ctx.table.counts()
        if self.pager.is_buried(ctx.table) and not counts.shared:
            assert counts.device == counts.host_only == 0, "a buried context holds nothing of device and host"

    @rule(byte_s=st.sampled_from((1e-9, 1.0, 1e9)), token_s=st.sampled_from((0.0, 1.0, 16.0)), num_bytes=st.sampled_from((0, 40, 1 << 20)))
    def price(self, byte_s: float, token_s: float, num_bytes: int) -> None:
        """Copies and prefill get other costs, and plans another allowance; prefill that costs nothing is not known."""
        costs = self.pager.costs
        costs.measured(Link.HOST_TO_DEVICE, 1, byte_s)
        costs.measured(Link.DEVICE_TO_HOST, max(num_bytes, 1), 1.0 if num_bytes else 0.0)
        costs.pace.note_plan(10.0, 0.0)
        for space_id in SPACES:
            costs.forget_model(str(space_id))
            costs.know_model(str(space_id), (space_id,), token_s)

    @rule(owner=st.sampled_from(OWNERS))
    def scrub(self, owner: str) -> None:
        self.pager.scrub(owner)
        self.num_changes += 1

    # ------------------------------------------------------------------------------------------------------------------ plans

    @precondition(lambda self: len(self.flights) < 2)
    @rule(picks=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3))
    def plan(self, picks: list[tuple[int, int]]) -> None:
        self.try_plan(picks)

    @precondition(lambda self: len(self.flights) < 2)
    @rule(number=st.integers(0, 9), more=st.integers(4, 16))
    def plan_one(self, number: int, more: int) -> None:
        self.try_plan([(number, more)])

    @rule(number=st.integers(0, 9), more=st.integers(1, 12))
    def turn(self, number: int, more: int) -> None:
        """What mostly happens: a plan goes out, the oldest comes back."""
        if len(self.flights) == 2:
            self.commit()
        if more % 3:
            self.fetch(number, True, more % 2 > 0)
        self.try_plan([(number, more)])

    def try_plan(self, picks: list[tuple[int, int]]) -> None:
        before = snapshot(self.pager, self.ctxs)
        wants: list[tuple[Ctx, int, int]] = []
        for number, more in picks:
            ctx = self.pick(number)
            if ctx is None or any(ctx is other for other, _, _ in wants):
                continue
            if not self.is_flying(ctx):
                self.approach(ctx)
            target = max(ctx.reach + more, len(ctx.tokens) if not self.is_flying(ctx) else 0)
            wants.append((ctx, ctx.reach, target))
        try:
            plan = self.pager.plan(self.seq + 1, [Want(ctx.table, start, target) for ctx, start, target in wants])
        except (OutOfFrames, OverLimit):
            assert before.is_back(snapshot(self.pager, self.ctxs)), "a plan that fails changes nothing"
            return
        self.seq += 1
        rows = [self.depart(ctx, start, target) for ctx, start, target in wants]
        self.flights.append(Flight(plan, rows, before, self.num_changes))

    def depart(self, ctx: Ctx, start: int, target: int) -> Row:
        ctx.tokens.extend(self.new_token() for _ in range(target - len(ctx.tokens)))
        ctx.reach = max(target, start)
        frames = [ctx.table.frames(group) for group in range(len(ctx.table.pages))]
        return Row(ctx, start, ctx.tokens[: ctx.reach], frames)

    @precondition(lambda self: self.flights)
    @rule()
    def execute(self) -> None:
        """The worker gets as far as the oldest plan it has not run."""
        flight = next((flight for flight in self.flights if not flight.is_run), None)
        if flight is not None:
            self.run(flight)

    @precondition(lambda self: self.flights)
    @rule()
    def commit(self) -> None:
        flight = self.flights.pop(0)
        self.run(flight)
        self.pager.commit(flight.plan.seq)
        self.num_changes += 1
        for row in flight.rows:
            if not row.ctx.is_dropped:
                row.ctx.valid = max(row.ctx.valid, len(row.tokens)) if self.is_flying(row.ctx) else len(row.tokens)
                self.pager.fill(row.ctx.table, row.ctx.valid, self.keys_of(row.ctx, row.ctx.valid))

    @precondition(lambda self: any(not flight.is_run for flight in self.flights))
    @rule()
    def abort(self) -> None:
        """A plan that never ran is taken back."""
        idx = next(idx for idx, flight in enumerate(self.flights) if not flight.is_run)
        flight = self.flights[idx]
        self.void(idx)
        self.pager.abort(flight.plan.seq)
        if flight.num_changes == self.num_changes:
            is_back = flight.before.is_back(snapshot(self.pager, self.ctxs))
            assert is_back or self.has_limits, "an abort brings everything back, but what was beyond a limit"
        self.seq = flight.plan.seq - 1
        self.num_changes += 1

    def void(self, idx: int) -> None:
        gone = self.flights[idx:]
        del self.flights[idx:]
        for row in [row for flight in gone for row in flight.rows]:
            row.ctx.reach = row.ctx.valid if not self.is_flying(row.ctx) else row.ctx.reach
        for flight in self.flights:
            for row in flight.rows:
                row.ctx.reach = len(row.tokens)

    @precondition(lambda self: self.flights and not self.flights[0].is_run)
    @rule(which=st.integers(0, 9))
    def corrupt(self, which: int) -> None:
        """A page in the host tier does not hold: the plan's other moves are made, its rows are not touched."""
        flight = self.flights[0]
        from_host = [idx for idx, move in enumerate(flight.plan.moves) if move.source_tier is Tier.HOST]
        if not from_host or self.holds:
            return
        bad = from_host[which % len(from_host)]
        frame = flight.plan.moves[bad].source_frame
        all_bad = tuple(idx for idx in from_host if flight.plan.moves[idx].source_frame == frame)
        self.worker.set_key(frame, b"?" * 16)
        self.worker.apply(flight.plan, all_bad)
        self.void(0)
        self.pager.abort(flight.plan.seq)
        self.pager.corrupt([flight.plan.moves[idx] for idx in all_bad])
        self.num_changes += 1
        for ctx in self.live():
            self.settle(ctx)

    @rule(runs=st.booleans(), chance=st.integers(0, 7))
    def lose_device(self, runs: bool, chance: int) -> None:
        if chance > 1:
            return
        if runs and self.flights:
            self.run(self.flights[0])
        if chance == 1 and self.flights:
            self.pager.abort(self.flights[0].plan.seq)  # some say it before, some leave it to the pager
        self.void(0)
        self.pager.lose_device()
        self.worker.bytes[Tier.DEVICE] = bytearray(NUM_DEVICE_SLABS * SLAB)
        self.weights = {name: placed for name, placed in self.weights.items() if shelf_of(name) is Tier.HOST}
        self.num_changes += 1
        for ctx in self.live():
            self.settle(ctx)

    # ------------------------------------------------------------------------------------------------------------------ weights

    @rule(name=st.sampled_from(("m1", "m2", "h1", "h2", "")), sizes=st.lists(st.sampled_from((32, 100, 128, 200)), min_size=1, max_size=2))
    def place_weights(self, name: str, sizes: list[int]) -> None:
        if not name:
            for placed in list(self.weights):
                self.pager.weights[shelf_of(placed)].release(placed)
                del self.weights[placed]
        elif name in self.weights:
            self.pager.weights[shelf_of(name)].release(name)
            del self.weights[name]
        else:
            try:
                offsets = self.pager.weights[shelf_of(name)].place(name, "models", tuple(sizes))
            except (OutOfFrames, NeverFits):
                return
            self.weights[name] = tuple(sizes), offsets
            for size, offset in zip(sizes, offsets, strict=True):
                self.worker.fill(offset, size, WEIGHTS, shelf_of(name))
        self.num_changes += 1

    @precondition(lambda self: not self.flights and not self.weights)
    @rule(size=st.sampled_from((100, 200, 300)), chance=st.integers(0, 2))
    def make_room(self, size: int, chance: int) -> None:
        if chance == 1:
            return
        name = "h1" if chance else "m1"
        before = snapshot(self.pager, self.ctxs)
        try:
            plan = self.pager.plan_room(self.seq + 1, (size,), shelf_of(name))
        except (OutOfFrames, NeverFits):
            assert before.is_back(snapshot(self.pager, self.ctxs))
            return
        self.seq += 1
        self.flights.append(Flight(plan, [], before, self.num_changes))
        self.commit()
        self.place_weights(name, [size])
        assert name in self.weights, "after its commit the weights can be placed"

    # ------------------------------------------------------------------------------------------------------------------ what holds

    @invariant()
    def integrity(self) -> None:
        self.pager.check_integrity()

    @invariant()
    def host_copies_hold_what_they_say(self) -> None:
        for ctx in self.live():
            for page in self.pager.host_pages(ctx.table):
                assert self.worker.key(page.frame) == page.key
                found = self.worker.stamps(ctx.table.space_ids[page.group], Tier.HOST, page.frame)
                first = page.page_idx * PAGE_TOKENS
                for position in range(first, min(first + page.num_tokens, ctx.valid, ctx.table.intact_tokens())):
                    assert tokens_in(found[position - first]) == {ctx.tokens[position]}

    @invariant()
    def disk_copies_hold_what_they_say(self) -> None:
        for ctx in self.live():
            for group, pages in enumerate(ctx.table.pages):
                for page in pages:
                    if page.disk_frame is None:
                        continue
                    assert self.worker.key(page.disk_frame, Tier.DISK) == page.key
                    found = self.worker.stamps(ctx.table.space_ids[group], Tier.DISK, page.disk_frame)
                    first = page.idx * PAGE_TOKENS
                    for position in range(first, min(first + page.num_tokens, ctx.valid, ctx.table.intact_tokens())):
                        assert tokens_in(found[position - first]) == {ctx.tokens[position]}

    @invariant()
    def free_frames_on_disk_are_holes(self) -> None:
        mapping = self.pager._mapping
        kept: set[int] = set()
        for pool in mapping.disk_pools().values():
            frames = [frame for slab in pool.slabs() for frame in pool.frames_of(slab) if not pool.is_free(frame)]
            kept.update(byte for frame in frames for byte in range(frame * GRANULE, frame * GRANULE + pool.frame_bytes))
        assert not any(byte for idx, byte in enumerate(self.worker.bytes[Tier.DISK]) if byte and idx not in kept)

    @invariant()
    def held_copies_do_not_change(self) -> None:
        for _ctx, held in self.holds:
            for start, content in held.items():
                assert self.worker.bytes[Tier.HOST][start : start + len(content)] == content

    @invariant()
    def weights_are_not_written(self) -> None:
        for name, (sizes, offsets) in self.weights.items():
            for size, offset in zip(sizes, offsets, strict=True):
                assert set(self.worker.bytes[shelf_of(name)][offset : offset + size]) == {0xEE}

    def teardown(self) -> None:
        """Everything is in place at the end, and nothing is left of who leaves."""
        if not hasattr(self, "flights"):
            return
        while self.flights:
            self.commit()
        self.host_copies_hold_what_they_say()
        while self.transfers:
            self.transferred(0, 1)
        while self.holds:
            self.release()
        for ctx in self.live():
            self.pager.drop(ctx.table)
        for owner in (*OWNERS, "models"):
            self.pager.sharing.forget_cache(owner)
            self.pager.scrub(owner)
        for name in self.weights:
            self.pager.weights[shelf_of(name)].release(name)
        for _ in range(2):
            self.seq += 1
            self.worker.apply(self.pager.plan(self.seq, []))
            self.pager.commit(self.seq)
        for _ in range(100):
            self.punch()
        self.pager.check_integrity()
        arenas = self.pager._mapping.arenas
        assert all(arena.num_free == arena.num_slabs for arena in arenas.values()), "no frame leaks"
        assert not any(any(content[: arenas[tier].total_bytes]) for tier, content in self.worker.bytes.items()), "no byte is left"


TestPagerContent = PagerContent.TestCase
TestPagerContent.settings = settings(max_examples=60, stateful_step_count=40)

# Rule, how often, and what its arguments are drawn from. Random walks reach states that shrinking search seldom does: a full host tier,
# slabs that change spaces, two plans aborted with a restore in between.
WALK: tuple[tuple[str, int, dict[str, Sequence[object]]], ...] = (
    ("turn", 25, {"number": range(10), "more": range(1, 13)}),
    ("plan_one", 6, {"number": range(10), "more": range(4, 17)}),
    ("plan", 6, {"picks": [[(first, 3), (first + 2, 7), (first + 5, 1)] for first in range(10)]}),
    ("execute", 6, {}),
    ("commit", 12, {}),
    ("abort", 5, {}),
    ("corrupt", 4, {"which": range(10)}),
    ("fork", 4, {"number": range(10), "cut": range(10), "owner": OWNERS}),
    ("repeat", 5, {"owner": OWNERS, "cut": range(6)}),
    ("share", 6, {"number": range(10), "cut": range(6)}),
    ("truncate", 3, {"number": range(10), "cut": range(10)}),
    ("drop", 1, {"number": range(10), "chance": (0,)}),
    ("alloc", 3, {"owner": OWNERS, "model": MODELS}),
    ("suspend", 3, {"number": range(10), "suspends": (False, True)}),
    ("save", 3, {"number": range(10)}),
    ("hold", 3, {"number": range(10)}),
    ("release", 3, {}),
    ("restore", 4, {"number": range(10), "count": range(1, 4)}),
    ("spill", 8, {"max_bytes": (48, 128, 1000), "ahead_bytes": (0, 100, 1000)}),
    ("fetch", 6, {"number": range(10), "whole": (False, True), "may_lose": (False, True)}),
    ("unfetch", 2, {"number": range(10)}),
    ("carry", 6, {"which": range(10), "whole": (False, True, True)}),
    ("transferred", 10, {"which": range(10), "chance": range(5)}),
    ("punch", 3, {}),
    ("bury", 3, {"number": range(10), "whole": (False, True)}),
    ("scrub", 1, {"owner": OWNERS}),
    ("lose_device", 1, {"runs": (False, True), "chance": range(3)}),
    ("place_weights", 2, {"name": ("m1", "m2", "h1", "h2", ""), "sizes": [[32], [100, 32], [128, 200], [200]]}),
    ("make_room", 1, {"size": (100, 200, 300), "chance": (0, 2)}),
)


def is_possible(machine: PagerContent, name: str) -> bool:
    """Whether a rule's precondition holds."""
    possible = {
        "plan": len(machine.flights) < 2,
        "plan_one": len(machine.flights) < 2,
        "execute": bool(machine.flights),
        "commit": bool(machine.flights),
        "abort": any(not flight.is_run for flight in machine.flights),
        "corrupt": bool(machine.flights) and not machine.flights[0].is_run,
        "release": bool(machine.holds),
        "carry": bool(machine.transfers),
        "transferred": bool(machine.transfers),
        "make_room": not machine.flights and not machine.weights,
    }
    return possible.get(name, True)


@pytest.mark.parametrize("seed", range(120))
def test_contexts_see_their_own_tokens_on_a_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    machine = PagerContent()
    sizes = draw.randint(3, NUM_DEVICE_SLABS), draw.randint(0, NUM_HOST_SLABS), draw.randint(0, NUM_DISK_SLABS)
    machine.start(draw.random() < 0.5, *sizes, draw.random() < 0.5)

    for _ in range(80):
        name, _weight, arguments = draw.choices(WALK, weights=[weight for _name, weight, _arguments in WALK])[0]
        if is_possible(machine, name):
            getattr(machine, name)(**{argument: draw.choice(values) for argument, values in arguments.items()})
        machine.integrity()
        machine.host_copies_hold_what_they_say()
        machine.disk_copies_hold_what_they_say()
        machine.free_frames_on_disk_are_holes()
        machine.held_copies_do_not_change()
        machine.weights_are_not_written()

    machine.teardown()
