"""Requests -> kernel values."""

from __future__ import annotations

import pytest

from drivers.contract import Sampling
from kerneld.calls import (
    Access,
    AllocArgs,
    ChatInput,
    Durability,
    ForkArgs,
    Grant,
    InferArgs,
    LimitMode,
    Limits,
    ListArgs,
    Priority,
    Role,
    ScoreArgs,
    SetArgs,
    TextInput,
    TokenInput,
)
from kerneld.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls import convert

ID = "a" * 32


def test_an_alloc_has_the_documented_defaults() -> None:
    assert convert.alloc_args(pb.AllocContextRequest(model="demo")) == AllocArgs("demo")


def test_an_alloc_takes_over_every_field() -> None:
    request = pb.AllocContextRequest(
        model="demo", max_tokens=9, priority=pb.PRIORITY_BATCH, nice=-3, durability=pb.DURABILITY_FSYNC, labels={"a": "b"}, seed=0
    )
    assert convert.alloc_args(request) == AllocArgs("demo", 9, Priority.BATCH, -3, Durability.FSYNC, {"a": "b"}, seed=0)


def test_every_word_of_the_interface_is_known() -> None:
    assert set(convert.PRIORITIES) == set(pb.Priority.values())
    assert set(convert.DURABILITIES) == set(pb.Durability.values())
    assert set(convert.ACCESSES) == set(pb.Access.values()) - {0}


def test_a_fork_at_offset_zero_is_told_from_a_fork_at_the_end() -> None:
    assert convert.fork_args(pb.ForkContextRequest(context_id=ID, at=0)) == ForkArgs(ID, at=0)
    assert convert.fork_args(pb.ForkContextRequest(context_id=ID)) == ForkArgs(ID, at=None)


def test_set_tells_what_is_left_out_from_what_is_zero() -> None:
    assert convert.set_args(pb.SetContextRequest(context_id=ID)) == SetArgs(ID)
    changed = convert.set_args(pb.SetContextRequest(context_id=ID, nice=0, max_tokens=0, priority=pb.PRIORITY_IDLE))
    assert changed == SetArgs(ID, nice=0, priority=Priority.IDLE, max_tokens=0)


def test_a_grant_is_a_set_of_accesses() -> None:
    message = pb.Grant(grantee="tenant:lab", access=[pb.ACCESS_READ, pb.ACCESS_FORK, pb.ACCESS_READ], expires_at=5)
    assert convert.grant_of(message) == Grant("tenant:lab", frozenset({Access.READ, Access.FORK}), 5.0)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (pb.InferRequest(context_id=ID), None),
        (pb.InferRequest(context_id=ID, text=""), TextInput("")),
        (pb.InferRequest(context_id=ID, tokens=pb.TokenList(ids=[1, 2])), TokenInput((1, 2))),
        (
            pb.InferRequest(context_id=ID, messages=pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])),
            ChatInput((("user", "hi"),)),
        ),
    ],
)
def test_the_input_is_text_tokens_messages_or_none(request_: pb.InferRequest, expected: object) -> None:
    assert convert.infer_args(request_).input == expected


def test_an_infer_without_parameters_samples_by_default() -> None:
    assert convert.infer_args(pb.InferRequest(context_id=ID)) == InferArgs(ID)


def test_sampling_takes_over_every_parameter() -> None:
    message = pb.SamplingParameters(
        temperature=0,
        top_k=4,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        seed=7,
        stop=["x"],
        stop_token_ids=[3],
        ignore_eos=True,
        logprobs=0,
    )
    args = convert.infer_args(pb.InferRequest(context_id=ID, max_tokens=5, sampling=message, deadline_s=2, detach_grace_s=0, max_queue_s=3))
    sampling = Sampling(0.0, 4, 0.5, 0.1, 1.5, 0.25, -0.5, 7, (3,), 0)
    assert args == InferArgs(ID, None, 5, sampling, True, ("x",), True, 2.0, 0.0, 3.0)


def test_a_score_needs_input() -> None:
    assert convert.score_args(pb.ScoreRequest(context_id=ID, text="a", top=2)) == ScoreArgs(ID, TextInput("a"), 2)
    assert convert.score_args(pb.ScoreRequest(context_id=ID, tokens=pb.TokenList(ids=[1]))).input == TokenInput((1,))
    with pytest.raises(InvalidArgument, match="input: is required"):
        convert.score_args(pb.ScoreRequest(context_id=ID))


def test_roles_are_named_and_a_token_without_any_is_a_users() -> None:
    assert convert.roles_of(["viewer", "admin"]) == {Role.VIEWER, Role.ADMIN}
    assert convert.roles_of([]) == {Role.USER}
    with pytest.raises(InvalidArgument, match=r"roles\[1\]: must be one of admin, operator, user, viewer"):
        convert.roles_of(["user", "king"])


def test_limits_take_over_every_field() -> None:
    assert convert.limits_of(pb.Limits(device_bytes=1, host_bytes=2, max_contexts=3, max_running=4, max_queued=5)) == Limits(1, 2, 3, 4, 5)
    assert convert.limits_of(pb.Limits(requests_per_minute=6, tokens_per_minute=7, image_bytes=8)) == Limits(0, 0, 0, 0, 0, 6, 7, 8)
    modes = {"max_running": pb.LIMIT_MODE_HARD, "loads_per_hour": pb.LIMIT_MODE_SOFT}
    of_loads = Limits(loads_per_hour=4, modes={"loads_per_hour": LimitMode.SOFT, "max_running": LimitMode.HARD})
    assert convert.limits_of(pb.Limits(loads_per_hour=4, modes=modes)) == of_loads


def test_lists_carry_page_and_conditions() -> None:
    contexts = pb.ListContextsRequest(page_size=5, page_token="x", all=True, model="m", tenant="t")
    assert convert.context_list(contexts) == ListArgs(5, "x", everybody=True, model="m", tenant="t")
    assert convert.image_list(pb.ListCheckpointsRequest(context_id=ID)) == ListArgs(context_id=ID)
    assert convert.token_list(pb.ListTokensRequest(tenant="lab")) == ListArgs(tenant="lab")
    assert convert.plain_list(pb.ListModelsRequest(page_size=1)) == ListArgs(1)


@pytest.mark.parametrize(("asked", "given"), [(0, 1.0), (0.001, 0.1), (5, 5.0)])
def test_top_is_not_asked_more_often_than_ten_times_a_second(asked: float, given: float) -> None:
    assert convert.top_interval_s(pb.TopRequest(interval_s=asked)) == given
