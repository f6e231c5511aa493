"""The shape of a quantum: decoding rows first, prefills share the rest, and as many steps as suit every row."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerneld.request import Request
from kerneld.rows import Row
from kerneld.step import RowNeed, StepShape, longest_quantum, reading_order, share_budget
from memory.page import Space
from memory.table import PageTable

NEEDS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=12)


def rows_of(make_request: Callable[..., Request], needs: list[tuple[int, int]]) -> list[RowNeed]:
    return [RowNeed(make_request(), num_pending, max_steps) for num_pending, max_steps in needs]


def test_decoding_rows_come_first_and_prefills_share_the_rest_in_order(make_request: Callable[..., Request]) -> None:
    rows = rows_of(make_request, [(30, 9), (1, 9), (30, 9), (1, 9), (30, 9)])

    shares = share_budget(rows, budget=40)

    assert [(rows.index(RowNeed(share.request, 30, 9)) if share.num_tokens > 1 else -1, share.num_tokens) for share in shares] == [
        (0, 30),
        (-1, 1),
        (2, 8),
        (-1, 1),
    ]


def test_who_has_less_to_read_reads_first_and_better_classes_before(make_request: Callable[..., Request]) -> None:
    hog = [RowNeed(make_request("hog"), 60, 9) for _ in range(3)]
    light, lax = RowNeed(make_request("light"), 100, 9), RowNeed(make_request("lax"), 5, 9)
    lax.request.rank = 1

    assert reading_order([*hog, lax, light]) == [light, *hog, lax]


def test_decoding_rows_make_as_many_steps_as_the_shortest_may(make_request: Callable[..., Request]) -> None:
    rows = rows_of(make_request, [(1, 9), (1, 3), (1, 7)])

    assert longest_quantum(rows, share_budget(rows, 10)) == 3


def test_a_prefill_that_ends_in_this_step_holds_nobody_up(make_request: Callable[..., Request]) -> None:
    rows = rows_of(make_request, [(1, 9), (20, 9)])

    assert longest_quantum(rows, share_budget(rows, 21)) == 9
    assert longest_quantum(rows, share_budget(rows, 20)) == 1


def test_no_rows_make_an_empty_step() -> None:
    assert (share_budget([], 10), longest_quantum([], [])) == ((), 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a factory has nothing to reset
@given(needs=NEEDS, budget=st.integers(1, 100))
def test_the_budget_is_kept_and_used(make_request: Callable[..., Request], needs: list[tuple[int, int]], budget: int) -> None:
    rows = rows_of(make_request, needs)

    shape = StepShape(share_budget(rows, budget), 1)

    pending = {row.request.id: row.num_pending for row in rows}
    assert shape.num_tokens == min(budget, sum(pending.values()))
    assert all(1 <= share.num_tokens <= pending[share.request.id] for share in shape.shares)


def test_a_row_says_how_far_it_has_to_look_back(make_request: Callable[..., Request]) -> None:
    request = make_request(num_input=50)
    row = Row(request, 0, PageTable("lab", (Space(1, 4, 256, 512),)), position=20, total=50, max_output=9)

    before = row.need()
    row.part(10, 1).depart()

    assert before == RowNeed(request, 30, 9, position=20)
    assert row.need() == RowNeed(request, 20, 9, position=30)
