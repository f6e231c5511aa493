"""The states of a context, its seeds, and what is shown of it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.calls import Access, ContextState, Grant, PageCounts
from kerneld.context import LEGAL_MOVES, Context, derive_seed
from kerneld.errors import WrongState

U64 = st.integers(min_value=0, max_value=(1 << 64) - 1)
ALL_MOVES = list(itertools.product(ContextState, ContextState))


def make_context(state: ContextState = ContextState.NEW) -> Context:
    return Context(id="c" * 32, owner="ann", tenant="lab/ann", model="m", fingerprint="f", seed=7, created_at=1.0, state=state)


@pytest.mark.parametrize(("source", "target"), [pair for pair in ALL_MOVES if pair[1] in LEGAL_MOVES[pair[0]]])
def test_a_legal_move_changes_the_state(source: ContextState, target: ContextState) -> None:
    context = make_context(source)

    context.move(target)

    assert context.state is target


@pytest.mark.parametrize(("source", "target"), [pair for pair in ALL_MOVES if pair[1] not in LEGAL_MOVES[pair[0]]])
def test_an_illegal_move_is_refused_and_changes_nothing(source: ContextState, target: ContextState) -> None:
    context = make_context(source)

    with pytest.raises(WrongState) as caught:
        context.move(target, "because")

    assert caught.value.facts == {"context": "c" * 32, "state": source.value, "wanted": target.value}
    assert (context.state, context.failure) == (source, "")


def test_the_table_has_a_row_for_every_state_and_freed_is_final() -> None:
    assert set(LEGAL_MOVES) == set(ContextState)
    assert LEGAL_MOVES[ContextState.FREED] == frozenset()
    assert LEGAL_MOVES[ContextState.FAILED] == {ContextState.FREED}


def test_a_failed_context_says_why() -> None:
    context = make_context(ContextState.RUNNING)

    context.move(ContextState.FAILED, "quarantined")

    assert context.info().failure == "quarantined"
    assert not context.is_alive


@pytest.mark.parametrize("state", list(ContextState))
def test_a_context_is_active_while_a_request_is_in_flight(state: ContextState) -> None:
    assert make_context(state).is_active == (state.value in {"ready", "running", "blocked"})


@given(U64, st.lists(st.integers(min_value=0, max_value=10_000), unique=True, min_size=2, max_size=20))
def test_derived_seeds_fit_64_bits_and_differ(seed: int, counters: list[int]) -> None:
    seeds = [derive_seed(seed, counter) for counter in counters]

    assert all(0 <= derived < 1 << 64 for derived in seeds)
    assert len(set(seeds)) == len(seeds)


def test_derived_seeds_are_those_of_splitmix64() -> None:
    # Reference output of the published generator for seed 1234567.
    assert [derive_seed(1234567, i) for i in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_every_fork_gets_another_seed() -> None:
    context = make_context()

    seeds = [context.fork_seed(f"{child:032x}") for child in range(4)]

    assert len({context.seed, *seeds}) == 5


def test_info_copies_what_may_change() -> None:
    context = make_context(ContextState.NEW)
    context.labels["a"] = "b"
    grant = Grant("principal:bob", frozenset({Access.READ}))
    context.grants[grant.grantee] = grant

    info = context.info(PageCounts(device=2), kv_bytes=64)
    context.labels["a"] = "c"

    assert (info.labels, info.grants, info.pages.device, info.kv_bytes) == ({"a": "b"}, (grant,), 2, 64)
