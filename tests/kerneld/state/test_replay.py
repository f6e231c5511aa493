"""What records come to, and that a compaction changes nothing of it."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.contract import Sampling
from kerneld import calls
from kerneld.accounts import Accounts, LoadAccount, RateAccount, ShareAccount
from kerneld.calls import Access, Durability, FinishReason, Priority, Usage
from kerneld.errors import DataLoss
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.state.records import (
    Admit,
    Alloc,
    Counters,
    Effect,
    Fail,
    Finish,
    Free,
    Grant,
    Record,
    Resume,
    Revoke,
    Set,
    Standing,
    Suspend,
    Tokens,
    Truncate,
    pack_tokens,
    unpack_tokens,
)
from kerneld.state.replay import EFFECT_LIFETIME_S, LogState, compacted


def context_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def alloc(number: int, tokens: tuple[int, ...] = (), parent: bytes = b"", fork_at: int = 0) -> Alloc:
    return Alloc(
        context_id=context_id(number),
        owner="ann",
        tenant="lab/ann",
        model="m",
        fingerprint="f",
        max_tokens=100,
        priority=Priority.BATCH,
        nice=3,
        durability=Durability.FSYNC,
        labels={"a": "1"},
        seed=2**64 - 1,
        created_at=float(number),
        parent=parent,
        fork_at=fork_at,
        tokens=pack_tokens(tokens),
    )


def admit(number: int, request: int, tokens: tuple[int, ...], output_start: int) -> Admit:
    return Admit(
        context_id=context_id(number),
        request=context_id(request),
        tokens=pack_tokens(tokens),
        sampling=Sampling(temperature=0.5, stop_token_ids=(2,)),
        stop=("\n",),
        max_tokens=5,
        ignore_eos=False,
        deadline_at=0.0,
        arrived_at=float(request),
        output_start=output_start,
        detach_grace_s=10.0,
        num_input=len(tokens),
    )


def finish(number: int, request: int) -> Finish:
    return Finish(context_id(number), context_id(request), FinishReason.STOP, Usage(output_tokens=2), "", 50.0)


def step(number: int, *tokens: int) -> Tokens:
    return Tokens(((context_id(number), pack_tokens(tokens)),))


def standing(number: int, request: int, num_prepaid: int = 0, *, is_running: bool = True) -> Standing:
    return Standing(context_id(number), context_id(request), 1, num_prepaid, is_running, 0, Tariff(1000, 100, 2000))


def share(path: str, counter: int) -> ShareAccount:
    return ShareAccount(path, counter, 0, counter, True, 0)


def test_input_and_output_follow_each_other() -> None:
    state = LogState.fold(
        [
            alloc(1),
            admit(1, 9, (1, 2), 2),
            step(1, 3),
            step(1, 4),
        ]
    )
    context = state.contexts[context_id(1)]
    assert list(context.tokens) == [1, 2, 3, 4]
    assert list(context.output) == [3, 4]
    assert context.active is not None
    assert context.active.num_input == 2


def test_a_finish_keeps_the_tokens_and_tells_how_it_ended() -> None:
    state = LogState.fold([alloc(1), admit(1, 9, (1, 2), 2), finish(1, 9)])
    context = state.contexts[context_id(1)]
    assert (list(context.tokens), context.active, context.last_request) == ([1, 2], None, context_id(9))
    assert context.last_finish is not None
    assert context.last_finish.usage.output_tokens == 2
    assert context.last_admit is not None
    assert context.last_admit.stop == ("\n",)


def test_a_finished_request_is_forgotten_with_the_tokens_that_it_generated() -> None:
    records: list[Record] = [alloc(1), admit(1, 9, (1, 2), 2), step(1, 3), finish(1, 9)]
    assert LogState.fold([*records, Truncate(context_id(1), 2)]).contexts[context_id(1)].last_admit is None
    assert LogState.fold([*records, admit(1, 8, (4,), 4)]).contexts[context_id(1)].last_admit is None


def test_of_two_accounts_the_later_goes_over_the_earlier_entry_by_entry() -> None:
    first = Accounts((share("", 1), share("a", 2)), {"a": (1, 2), "b": (3,)}, {"m": Tariff(1, 1, 1)})
    later = Accounts((share("a", 5), share("b", 6)), {"a": (2, 9), "b": ()}, {"n": Tariff(2, 2, 2)})
    accounts = LogState.fold([first, later]).accounts
    assert accounts.shares == (share("", 1), share("a", 5), share("b", 6))
    assert accounts.outputs == {"a": (2, 9)}
    assert accounts.tariffs == {"m": Tariff(1, 1, 1), "n": Tariff(2, 2, 2)}


def test_accounts_of_removed_tenants_and_tariffs_of_removed_models_are_not_kept() -> None:
    first = Accounts((share("a", 2), share("a/.", 2), share("b", 3)), tariffs={"m": Tariff(1, 1, 1)})
    gone = [ShareAccount(path, 0, 0, 0, False, 0, is_removed=True) for path in ("a", "a/.", "never")]
    accounts = LogState.fold([first, Accounts((*gone, share("a", 0)), tariffs={"m": UNCALIBRATED})]).accounts
    assert accounts.shares == (share("b", 3), share("a", 0))
    assert accounts.tariffs == {}


def test_tokens_use_up_what_is_prepaid_and_count_as_served() -> None:
    records: list[Record] = [alloc(1), admit(1, 9, (1,), 1), standing(1, 9, 3), step(1, 7, 7)]
    assert [(item.num_prepaid, item.num_served) for item in LogState.fold(records).standings] == [(1, 2)]
    assert [(item.num_prepaid, item.num_served) for item in LogState.fold([*records, step(1, 7, 7)]).standings] == [(0, 4)]


def test_requests_stand_in_the_order_in_which_they_were_seated() -> None:
    begun: list[Record] = [alloc(1), alloc(2), alloc(3), admit(1, 7, (1,), 1), admit(2, 8, (1,), 1), admit(3, 9, (1,), 1)]
    seated: list[Record] = [standing(3, 9), standing(1, 7), standing(2, 8), standing(3, 9, is_running=False)]
    assert [item.request for item in LogState.fold([*begun, *seated]).standings] == [context_id(7), context_id(8), context_id(9)]


@pytest.mark.parametrize("records", [[], [alloc(1)], [alloc(1), admit(1, 8, (1,), 1)], [alloc(1), admit(1, 9, (1,), 1), finish(1, 9)]])
def test_how_a_request_stood_that_has_ended_tells_nothing(records: list[Record]) -> None:
    assert LogState.fold([*records, standing(1, 9)]) == LogState.fold(records)


def test_logs_of_an_older_kerneld_are_read() -> None:
    """They have charges at the end of some records, and counters that meant something else."""
    charges = {"lab": 7}
    older = [
        (*msgspec.structs.astuple(admit(1, 9, (1, 2), 2))[:11], charges),
        (((context_id(1), pack_tokens((3,))),), charges),
        (*msgspec.structs.astuple(finish(1, 9)), charges),
        ({"counter:lab": 5},),
    ]
    encoded = [msgspec.msgpack.encode([tag, *fields]) for tag, fields in zip((2, 3, 4, 14), older, strict=True)]
    records = [msgspec.msgpack.decode(payload, type=Record) for payload in encoded]
    state = LogState.fold([alloc(1), *records])
    assert state == LogState.fold([alloc(1), admit(1, 9, (1, 2), 2), step(1, 3), finish(1, 9)])
    assert not state.accounts.shares


def test_a_fork_has_the_parent_past_and_survives_it() -> None:
    state = LogState.fold([alloc(1, (1, 2, 3)), alloc(2, (9,), parent=context_id(1), fork_at=2), Free(context_id(1))])
    assert list(state.contexts[context_id(2)].tokens) == [1, 2, 9]
    assert context_id(1) not in state.contexts


def test_unfinished_requests_keep_their_order() -> None:
    records: list[Record] = [alloc(1), alloc(2), alloc(3), admit(3, 7, (1,), 1), admit(1, 8, (1,), 1), admit(2, 6, (1,), 1), finish(1, 8)]
    assert list(LogState.fold(records).active) == [context_id(3), context_id(2)]


def test_labels_are_merged_and_an_empty_one_goes() -> None:
    state = LogState.fold([alloc(1), Set(context_id(1), nice=5, labels={"a": "", "b": "2"})])
    context = state.contexts[context_id(1)]
    assert (context.labels, context.nice, context.priority) == ({"b": "2"}, 5, Priority.BATCH)


def test_a_compaction_forgets_effects_after_a_day() -> None:
    effects = [Effect("ann", str(at), "alloc", b"d", b"a", at) for at in (0.0, 10.0)]
    assert list(LogState.fold(compacted(effects, EFFECT_LIFETIME_S + 5.0)).effects.values()) == effects[1:]


@pytest.mark.parametrize(
    "records",
    [
        [Free(context_id(1))],
        [alloc(1), alloc(1)],
        [alloc(1), finish(1, 9)],
        [alloc(1), admit(1, 9, (), 0), finish(1, 8)],
        [alloc(1), admit(1, 9, (), 0), admit(1, 8, (), 0)],
        [alloc(1), Truncate(context_id(1), 1)],
        [alloc(1), alloc(2, parent=context_id(1), fork_at=1)],
        [Tokens(((context_id(1), b""),))],
    ],
)
def test_a_log_that_contradicts_itself_is_refused(records: list[Record]) -> None:
    with pytest.raises(DataLoss, match="contradicts itself"):
        LogState.fold(records)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_tokens_come_back_as_they_were_packed(tokens: list[int]) -> None:
    assert list(unpack_tokens(pack_tokens(tokens))) == tokens


def history(seed: int, length: int) -> list[Record]:
    """Return a random log that a daemon could have written."""
    rng = random.Random(seed)
    records: list[Record] = []
    state = LogState()
    for number in range(1, length + 1):
        record = _next_record(rng, state, number)
        state.apply(record)
        records.append(record)
    return records


def _next_record(rng: random.Random, state: LogState, number: int) -> Record:
    if not state.contexts or rng.random() < 0.2:
        parents = [context for context in state.contexts.values() if context.tokens]
        if parents and rng.random() < 0.5:
            parent = rng.choice(parents)
            return alloc(number, (number,), parent.context_id, rng.randrange(1, len(parent.tokens) + 1))
        return alloc(number, (number, number))
    context = rng.choice(list(state.contexts.values()))
    key = context.context_id
    if context.active is not None and rng.random() < 0.7:
        batch = tuple((active, pack_tokens((rng.randrange(4096),))) for active in state.active)
        if rng.random() < 0.5:
            return Finish(key, context.active.request, FinishReason.LENGTH, Usage(), "x", number)
        if rng.random() < 0.3:
            return Standing(key, context.active.request, 1, rng.randrange(9), rng.random() < 0.7, rng.randrange(3))
        return Tokens(batch)
    if context.active is None and rng.random() < 0.5:
        return admit(int.from_bytes(key, "big"), number, (number,), len(context.tokens) + 1)
    others: list[Record] = [
        Suspend(key),
        Resume(key),
        Set(key, nice=number % 5, labels={"x": str(number % 2 or "")}),
        Grant(key, calls.Grant("tenant:lab", frozenset({Access.READ}), float(number))),
        Revoke(key, "tenant:lab"),
        Fail(key, "because"),
        Truncate(key, len(context.tokens) // 2) if context.active is None else Suspend(key),
        Free(key),
        Effect("ann", str(number % 7), "alloc", b"d", b"a", float(number)),
        Counters({"lab": number, "other": 1}),
        _accounts(rng, number),
    ]
    return rng.choice(others)


def _accounts(rng: random.Random, number: int) -> Accounts:
    return Accounts(
        shares=(share("lab", number), share(f"lab/{number % 3}", number)),
        outputs={f"lab/{number % 3}": rng.choice(((), (number,)))},
        tariffs={"m": Tariff(number, 1, 1)},
        rates={f"lab/{number % 3}": rng.choice(({}, {"requests": RateAccount(number, number)}))},
        loads={f"m{number % 3}": LoadAccount(rng.choice((0, number)), {"lab": number})},
    )


@given(st.integers(0, 10_000), st.integers(0, 120), st.floats(0, 1))
def test_a_compaction_anywhere_changes_nothing(seed: int, length: int, where: float) -> None:
    records = history(seed, length)
    cut = int(len(records) * where)
    snapshot = LogState.fold(records[:cut]).snapshot()
    assert LogState.fold([*snapshot, *records[cut:]]) == LogState.fold(records)  # invariant 1
