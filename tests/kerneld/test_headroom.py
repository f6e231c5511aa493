"""Room that is kept for what running requests are expected to generate."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field

from drivers.contract import Sampling
from kerneld.calls import InferArgs
from kerneld.context import Context
from kerneld.headroom import Headroom
from kerneld.pricing.usedparts import UsedParts
from kerneld.request import Request
from kerneld.rows import Row
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript
from memory.config import MemoryConfig
from memory.page import Space
from memory.pager import Pager, Want

PAGE_TOKENS = 4
FRAME = 4096


@dataclass
class Bench:
    """A device of a few pages, and requests on it."""

    num_pages: int
    slab_bytes: int = FRAME
    frame_bytes: int = FRAME
    parts: UsedParts = field(default_factory=UsedParts)

    def __post_init__(self) -> None:
        self.pager = Pager(
            MemoryConfig(self.num_pages * FRAME, 0, page_tokens=PAGE_TOKENS, slab_bytes=self.slab_bytes, granule_bytes=FRAME)
        )
        self.pager.open_space(Space(1, PAGE_TOKENS, self.frame_bytes, 2 * self.frame_bytes))
        self.num_requests = 0

    def request(self, num_input: int, max_tokens: int, score_from: int = -1) -> Request:
        self.num_requests += 1
        context = Context(f"{self.num_requests:032x}", "ann", "lab/ann", "m", "", 1, 0.0)
        context.tokens = array("I", [self.num_requests]) * num_input
        context.table = self.pager.new_table("lab/ann", (1,))
        log = OutputLog(num_input, lambda: 0.0)
        args = InferArgs(context.id)
        return Request(
            context.id, context, args, Sampling(), num_input, num_input, max_tokens, 0.0, log, Transcript(log, None), score_from=score_from
        )

    def row(self, num_input: int, max_tokens: int) -> Row:
        request = self.request(num_input, max_tokens)
        assert request.context.table is not None
        return Row(request, self.num_requests, request.context.table, 0, num_input, max_tokens)

    def has_room(self, rows: list[Row], candidate: Request, growth_share: float = 1.0) -> bool:
        return Headroom(self.pager, self.parts, growth_share).has_room(rows, candidate)


def test_beside_nobody_there_is_room_for_anybody() -> None:
    bench = Bench(2)

    assert bench.has_room([], bench.request(100, 100))


def test_rows_keep_room_for_what_they_asked_for_where_nothing_is_known() -> None:
    bench = Bench(10)
    rows = [bench.row(8, 12)]

    assert bench.has_room(rows, bench.request(8, 12))
    assert not bench.has_room(rows, bench.request(8, 16))


def test_outputs_that_ended_say_how_much_is_kept() -> None:
    bench = Bench(10)
    rows = [bench.row(8, 1000)]
    assert not bench.has_room(rows, bench.request(8, 1000))

    bench.parts.ended("lab/ann", 12, 1000)

    assert bench.has_room(rows, bench.request(8, 1000))


def test_a_row_that_passed_what_was_expected_may_grow_by_a_page() -> None:
    bench = Bench(10)
    bench.parts.ended("lab/ann", 4, 1000)
    bench.parts.ended("lab/ann", 4, 1000)
    row = bench.row(8, 1000)
    row.request.context.tokens.extend([1] * 16)

    assert bench.has_room([row], bench.request(8, 4))
    assert not bench.has_room([row], bench.request(12, 4))


def test_only_a_part_of_the_growth_is_kept_where_that_is_wanted() -> None:
    bench = Bench(8)
    rows = [bench.row(8, 12)]

    assert not bench.has_room(rows, bench.request(8, 12))
    assert bench.has_room(rows, bench.request(8, 12), growth_share=0.5)
    assert bench.has_room(rows, bench.request(800, 12), growth_share=0.0)


def test_rows_that_come_and_leave_are_counted_as_if_all_were_looked_at_again() -> None:
    bench, rng = Bench(200), random.Random(1)
    headroom, rows, answers = Headroom(bench.pager, bench.parts, 1.0), [bench.row(8, 12)], []
    for _ in range(300):
        candidate = bench.request(rng.randint(1, 60), rng.randint(1, 60))
        answers.append(headroom.has_room(rows, candidate))
        assert answers[-1] is bench.has_room(rows, candidate)
        if answers[-1]:
            rows.append(bench.row(rng.randint(1, 60), rng.randint(1, 60)))
        else:
            del rows[rng.randrange(len(rows)) :]

    assert set(answers) == {True, False}


def test_rows_that_have_grown_are_counted_anew_with_the_next_plan() -> None:
    bench = Bench(10)
    row, candidate = bench.row(8, 12), bench.request(8, 12)
    headroom = Headroom(bench.pager, bench.parts, 1.0)
    before = headroom.has_room([row], candidate)
    row.total = 36
    same_plan = headroom.has_room([row], candidate)

    headroom.begin()

    assert (before, same_plan, headroom.has_room([row], candidate)) == (True, True, False)


def test_who_only_scores_does_not_grow() -> None:
    bench = Bench(5)

    assert bench.has_room([bench.row(8, 4)], bench.request(8, 400, score_from=1))


def test_shared_pages_count_once() -> None:
    bench = Bench(12)
    row = bench.row(32, 4)
    bench.pager.plan(1, [Want(row.table, 0, 32)])
    bench.pager.commit(1)
    candidate = bench.request(32, 4)
    assert not bench.has_room([row], candidate)

    candidate.context.table = bench.pager.fork(row.table, 32)

    assert bench.has_room([row], candidate)


def test_pages_that_a_candidate_shares_with_nobody_who_runs_are_held_all_the_same() -> None:
    bench = Bench(12)
    idle = bench.row(32, 4)
    bench.pager.plan(1, [Want(idle.table, 0, 32)])
    bench.pager.commit(1)
    candidate = bench.request(32, 4)
    candidate.context.table = bench.pager.fork(idle.table, 32)

    assert bench.has_room([bench.row(8, 4)], candidate)
    assert not bench.has_room([bench.row(12, 4)], candidate)


def test_what_a_slab_has_left_behind_its_last_frame_is_no_room() -> None:
    bench = Bench(12, slab_bytes=3 * FRAME, frame_bytes=2 * FRAME)  # a frame in each of four slabs
    row = bench.row(4, 4)

    assert bench.has_room([row], bench.request(4, 4))
    assert not bench.has_room([row], bench.request(8, 4))
