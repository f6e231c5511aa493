"""Kernel values -> answers: every field arrives at its place in the client's values."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from typing import Any

import pytest

from drivers.contract import TokenLogprob
from kerneld import calls, holdings
from kerneld_client import reading, values
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import answers, memory_answers

CONTEXT = calls.ContextInfo(
    id="a" * 32,
    model="demo",
    owner="alice",
    tenant="lab/alice",
    state=calls.ContextState.SUSPENDED,
    num_tokens=11,
    max_tokens=12,
    priority=calls.Priority.BATCH,
    nice=-4,
    durability=calls.Durability.FSYNC,
    labels={"a": "b"},
    created_at=1.5,
    last_used_at=2.5,
    seed=2**63,
    pages=calls.PageCounts(1, 2, 3, 4, 5),
    kv_bytes=13,
    parent="b" * 32,
    active_request="c" * 32,
    last_request="d" * 32,
    failure="why",
    grants=(calls.Grant("tenant:lab", frozenset({calls.Access.READ, calls.Access.FORK}), 3.5),),
)
HOLDING = holdings.Holding("device", "lab/a", "kv", "b" * 32, "running", 7)
CHANGE = holdings.LimitChange("device", "device_bytes", 9, 3, holdings.Outcome.DEFERRED, 4, (HOLDING,))
EXPLANATION = holdings.Explanation(
    subject="context x",
    state="ready",
    summary="It waits.",
    placements=(holdings.Placement("host", 64, 2),),
    obstacles=(holdings.Obstacle("FRAMES", "it needs more", "device", "lab", 1, 2, 3),),
    holders=(HOLDING,),
    queue=holdings.QueuePlace(1, 2, 3, 4, 5),
    outlook=holdings.Outlook(
        request="a" * 32,
        context_id="b" * 32,
        tenant="lab/alice",
        model="demo",
        state="waiting",
        priority="idle",
        nice=-3,
        arrived_at=1.5,
        queue_s=2.5,
        position=3,
        is_position_least=True,
        tenant_position=4,
        contenders=(holdings.Contender("others", False, 5, 6, -7, 8, 9, 10),),
        estimate=holdings.StartEstimate(0.0, None, 11),
        deferred_until=12.5,
        deadline=13.5,
        num_preemptions=14,
        output_tokens=15,
        first_token_s=0.0,
        reason="stop",
        detail="why",
        ended_at=16.5,
        queue_until=17.5,
    ),
)
MEMORY = holdings.MemoryReport(
    (holdings.TierTotal("host", 1, 2, 3, {"kv": 4}),),
    (holdings.TierAccount("lab", "host", {"kv": 1}, 2, 3, 4, 5, 6, 7, 8),),
    (holdings.PathDecision(1.0, "m", "c", 2, 3, "disk", 4.0, "recompute", 5.0, None),),
)
MODEL = calls.ModelInfo("demo", "/m", calls.ModelState.FAILED, "llama", "float32", 1, 2, 3, 4, "h", "cpu:0", 5, 6, "why", "int8", True)
IMAGE = calls.ImageInfo("a" * 32, "b" * 32, "demo", "alice", "lab", 1, 2, 3, 4.5, "name")
MODES = {"max_running": calls.LimitMode.HARD, "loads_per_hour": calls.LimitMode.SOFT}
LIMITS = calls.Limits(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, MODES)
TENANT = calls.TenantInfo("lab", 2, LIMITS, 1.5, 3, 4, 5, 6, 7, 8, 9, 10, 11, "ab", (CHANGE,))
TOKEN = calls.TokenInfo("t1", "lab", "ci", frozenset({calls.Role.USER, calls.Role.ADMIN}), 1.0, 2.0, 3.0)
TOP = calls.TopFrame(
    at=1.0,
    uptime_s=2.0,
    running=3,
    waiting=4,
    num_contexts=5,
    tokens_per_s=6.0,
    prefill_tokens_per_s=7.0,
    tiers=(calls.TierUse("device", 8, 9, 10, {"lab": 11}),),
    tenants=(TENANT,),
    workers=(calls.WorkerStatus("cpu:0", "cpu", 12, "running", 13, 0.5),),
    models=(MODEL,),
    boot_generation=14,
    activities=(holdings.TenantActivity("lab", 2, 500, -3, 0.25, -4, 5, 6, 7, 8),),
    recent_s=10.5,
    jain=0.5,
)
PAIRS = [
    (CONTEXT, answers.context, reading.context_info),
    (calls.ContextText(1, (2, 3), "x", 4), answers.context_text, reading.context_text),
    (calls.Delta(1, (2,), "x", (TokenLogprob(-1.0, ((2, -1.0), (3, -2.0))),)), lambda it: answers.stream_event(it).delta, reading.delta),
    (calls.Usage(1, 2, 3, 4, 5, 6.0, 7.0), lambda it: answers.finished(calls.Finished(calls.FinishReason.STOP, it)).usage, reading.usage),
    (MODEL, answers.model, reading.model_info),
    (calls.LoadProgress("weights", 1, 2), answers.load_event, reading.load_event),
    (IMAGE, answers.image, reading.image),
    (calls.Restored(CONTEXT, 1, 2, "why"), answers.restored, reading.restored),
    (TENANT, answers.tenant, reading.tenant_info),
    (TOKEN, answers.token, reading.token_info),
    (calls.Drained(1, 2), answers.drained, reading.drained),
    (TOP, answers.top_frame, reading.top_frame),
    (MEMORY, memory_answers.memory, reading.memory),
    (EXPLANATION, memory_answers.explanation, reading.explanation),
    (holdings.PartChecked("books", 1, "pages", 2, ("why",)), memory_answers.part_checked, reading.part_checked),
    (calls.EventRecord(1, 2.0, "WorkerLost", {"a": "b"}), answers.event, reading.event),
]


def plain(value: Any) -> Any:
    """Words for enums, lists for sequences and sets; sizes are called as the interface calls them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {("bytes" if key == "size_bytes" else key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, TokenLogprob):
        return {"logprob": value.logprob, "top": plain(value.top)}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(("value", "write", "read"), PAIRS, ids=[type(pair[0]).__name__ for pair in PAIRS])
def test_a_value_arrives_whole(value: Any, write: Any, read: Any) -> None:
    message = type(write(value)).FromString(write(value).SerializeToString())
    assert plain(asdict(read(message))) == plain(asdict(value))


@pytest.mark.parametrize("state", list(calls.ContextState))
def test_every_context_state_has_its_word(state: calls.ContextState) -> None:
    assert reading.context_info(answers.context(replace(CONTEXT, state=state))).state == state.value


@pytest.mark.parametrize("reason", list(calls.FinishReason))
def test_every_finish_reason_has_its_word(reason: calls.FinishReason) -> None:
    event = answers.stream_event(calls.Finished(reason, calls.Usage(), "why"))
    assert reading.finish_reason(event.finished.reason) == reason.value
    assert event.finished.detail == "why"


def test_a_word_that_an_old_client_does_not_know_is_unspecified() -> None:
    assert reading.context_info(pb.Context(state=99)).state == "unspecified"  # type: ignore[arg-type]


def test_a_new_token_shows_its_secret() -> None:
    made = reading.new_token(answers.new_token(calls.NewToken(TOKEN, "secret")))
    assert (made.id, made.token, made.tenant, made.expires_at) == ("t1", "secret", "lab", 2.0)


def test_a_score_adds_up() -> None:
    score = reading.score(answers.score(calls.Score((1, 2), (TokenLogprob(-1.0), TokenLogprob(-0.5)))))
    assert (score.tokens, score.total) == ((1, 2), -1.5)


def test_an_image_with_problems_is_not_ok() -> None:
    assert reading.verified(answers.verified(calls.Verified(("torn",), 1))) == values.Verified(False, ("torn",), 1)
    assert reading.verified(answers.verified(calls.Verified((), 1))).ok
