"""Usage and shares: every field arrives at its place in the client's values."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from kerneld.calls import ListPage
from kerneld.usage.report import ShareRecord, Span, UsageArgs, UsageRecord
from kerneld_client import usage_calls
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import usage_answers

USED = UsageRecord("lab/a", 3600.0, True, 1, 2, 3, 4, 5_000_000, -6, 7000, 8000, 9000, 10, 11_000_000)
SHARE = ShareRecord("lab/a", 2, 0.25, 0.125, 0.5, 6, 700, 0.75, 0.375, 10, 11, 12)


def test_a_record_of_usage_arrives_in_seconds() -> None:
    read = usage_calls.usage_record(usage_answers.usage_record(USED))
    assert [getattr(read, field.name) for field in fields(read)] == ["lab/a", 3600.0, True, 1, 2, 3, 4, 5.0, -6, 7.0, 8.0, 9.0, 10, 11.0]


def test_a_node_of_the_tree_arrives() -> None:
    assert asdict(usage_calls.share_record(usage_answers.share_record(SHARE))) == asdict(SHARE)


def test_pages_carry_their_token() -> None:
    assert usage_answers.usage(ListPage((USED,), "next")).next_page_token == "next"
    assert usage_answers.shares(ListPage((SHARE,), "next")).next_page_token == "next"


@pytest.mark.parametrize(("by", "span"), [("hour", Span.HOUR), ("day", Span.DAY), ("total", Span.TOTAL)])
def test_what_the_client_asks_arrives(by: str, span: Span) -> None:
    call = usage_calls.usage("after", "lab", 1.5, 2.5, by)
    assert isinstance(call.request, pb.UsageRequest)
    assert usage_answers.usage_args(call.request) == UsageArgs("lab", 1.5, 2.5, span, 0, "after")


def test_a_span_that_was_not_named_is_all_of_the_time() -> None:
    assert usage_answers.usage_args(pb.UsageRequest()).span is Span.TOTAL
