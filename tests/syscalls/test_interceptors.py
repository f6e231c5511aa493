"""The gate: identity, permission, bounds, errors, audit."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kerneld.calls import Principal, Role
from kerneld.errors import NotFound, QuotaExceeded
from kerneld.security.acl import has_permission
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.status import DETAILS_KEY
from tests.syscalls.requests import well_formed
from tests.syscalls.rig import TABLE, Rig, ask, bearer, method_of

NO_SUCH_ID = "f" * 32


def refusal(channel: grpc.Channel, verb: str, request: Message | bytes, token: str = "user") -> Any:
    """The error that a call ends in."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, verb, request, token)
    return caught.value


def reason_of(error: Any) -> details.ErrorInfo:
    """The ErrorInfo of a refusal."""
    status = Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    info = details.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_nobody_may_call_anything(rig: Rig, channel: grpc.Channel) -> None:
    for verb, call in TABLE.items():
        error = refusal(channel, verb, well_formed(call.request), token="")
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, verb
    assert rig.kernel.seen == []
    assert rig.audit.lines == []


@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_call_what_its_permissions_say_and_nothing_else(rig: Rig, channel: grpc.Channel, role: Role) -> None:
    principal = Principal(role.value, "lab", frozenset({role}))
    for verb, call in TABLE.items():
        try:
            ask(channel, verb, well_formed(call.request), token=role.value)
            is_denied = False
        except grpc.RpcError as error:
            is_denied = error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert is_denied != has_permission(principal, call.permission), verb


@pytest.mark.parametrize("header", ["user", "Basic user", "Bearer", "Bearer ", "Bearer wrong", "Bearer user extra"])
def test_a_malformed_or_unknown_credential_is_nobodys(channel: grpc.Channel, header: str) -> None:
    method = method_of(channel, "WhoAmI")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"", metadata=(("authorization", header),), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_identity_comes_before_the_message(channel: grpc.Channel) -> None:
    assert refusal(channel, "AllocContext", b"\xff\xff\xff", token="").code() is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(channel, "AllocContext", b"\xff\xff\xff", token="viewer").code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xc3\x28"])
def test_bytes_that_are_no_message_are_an_invalid_argument(rig: Rig, channel: grpc.Channel, garbage: bytes) -> None:
    error = refusal(channel, "AllocContext", garbage)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a well-formed AllocContextRequest" in error.details()
    assert rig.kernel.seen == []


def test_a_message_over_the_limit_is_refused_with_both_numbers(rig: Rig, channel: grpc.Channel) -> None:
    request = pb.InferRequest(context_id=NO_SUCH_ID, text="x" * (rig.config.max_message_bytes + 1))
    error = refusal(channel, "Infer", request)
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert str(rig.config.max_message_bytes) in error.details()


def test_a_message_far_over_the_limit_is_cut_off(rig: Rig, channel: grpc.Channel) -> None:
    error = refusal(channel, "AllocContext", b"\0" * (2 * rig.config.max_message_bytes + 10))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_malformed_field_is_named_and_nothing_changes(rig: Rig, channel: grpc.Channel) -> None:
    error = refusal(channel, "AllocContext", pb.AllocContextRequest(model="demo", nice=77))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(reason_of(error).metadata) == {"field": "nice"}
    assert rig.kernel.seen == []


def test_a_method_that_does_not_exist_is_unimplemented(channel: grpc.Channel) -> None:
    for path in ("/kerneld.v1.Contexts/Nonsense", "/other.Service/Do"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path, bytes, bytes)(b"", metadata=bearer("admin"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_error_of_the_kernel_arrives_with_reason_facts_and_retry_time(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.failures["alloc"] = QuotaExceeded("Too many contexts.", facts={"tenant": "lab", "limit": "3"}, retry_after_s=2.5)
    error = refusal(channel, "AllocContext", pb.AllocContextRequest(model="demo"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = reason_of(error)
    assert (info.domain, info.reason, dict(info.metadata)) == ("kerneld", "QUOTA_EXCEEDED", {"tenant": "lab", "limit": "3"})


def test_a_bug_is_internal_with_an_id_that_is_in_the_log_and_nothing_else(
    rig: Rig, channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    rig.kernel.failures["stat"] = RuntimeError("a secret prompt")
    with caplog.at_level(logging.ERROR, logger="syscalls.interceptors"):
        error = refusal(channel, "StatContext", pb.StatContextRequest(context_id=NO_SUCH_ID))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.trailing_metadata()) + error.details()
    assert [record.error_id for record in caplog.records] == [reason_of(error).metadata["error_id"]]  # type: ignore[attr-defined]
    assert rig.registry.get_sample_value("kerneld_syscall_bugs_total") == 1


def test_a_bug_in_a_stream_is_treated_the_same(rig: Rig, channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    rig.kernel.failures["infer"] = RuntimeError("a secret prompt")
    with caplog.at_level(logging.ERROR, logger="syscalls.interceptors"):
        error = refusal(channel, "Infer", pb.InferRequest(context_id=NO_SUCH_ID))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert caplog.records[0].error_id == reason_of(error).metadata["error_id"]  # type: ignore[attr-defined]


def test_calls_are_counted_by_verb_and_code(rig: Rig, channel: grpc.Channel) -> None:
    ask(channel, "WhoAmI", pb.WhoAmIRequest())
    ask(channel, "WhoAmI", pb.WhoAmIRequest())
    refusal(channel, "StatContext", pb.StatContextRequest(context_id=NO_SUCH_ID))
    assert rig.registry.get_sample_value("kerneld_syscalls_total", {"verb": "WhoAmI", "code": "OK"}) == 2
    assert rig.registry.get_sample_value("kerneld_syscalls_total", {"verb": "StatContext", "code": "NOT_FOUND"}) == 1


# --------------------------------------------------------------------------------------------------------------------------- audit


def test_mutating_calls_are_audited_with_object_and_outcome_and_reading_ones_are_not(rig: Rig, channel: grpc.Channel) -> None:
    made = ask(channel, "AllocContext", pb.AllocContextRequest(model="demo", labels={"secret": "label"}))
    ask(channel, "StatContext", pb.StatContextRequest(context_id=made.id))
    ask(channel, "Infer", pb.InferRequest(context_id=made.id, text="a secret prompt", max_tokens=2))
    refusal(channel, "FreeContext", pb.FreeContextRequest(context_id=NO_SUCH_ID))
    assert rig.audit.lines == [
        ("user", "AllocContext", "demo", "OK", {"made": made.id}),
        ("user", "Infer", made.id, "OK", {}),
        ("user", "FreeContext", NO_SUCH_ID, "NOT_FOUND", {}),
    ]


def test_a_stream_that_fails_at_once_is_audited_as_failed(rig: Rig, channel: grpc.Channel) -> None:
    refusal(channel, "Infer", pb.InferRequest(context_id=NO_SUCH_ID))
    assert rig.audit.lines == [("user", "Infer", NO_SUCH_ID, "NOT_FOUND", {})]


def test_a_denied_mutation_is_audited_without_a_look_at_the_message(rig: Rig, channel: grpc.Channel) -> None:
    refusal(channel, "FreeContext", pb.FreeContextRequest(context_id=NO_SUCH_ID), token="viewer")
    assert rig.audit.lines == [("viewer", "FreeContext", "", "PERMISSION_DENIED", {})]


def test_a_bug_is_audited_as_internal(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.failures["free"] = RuntimeError("x")
    refusal(channel, "FreeContext", pb.FreeContextRequest(context_id=NO_SUCH_ID))
    assert rig.audit.lines[-1][3] == "INTERNAL"


# -------------------------------------------------------------------------------------------------------------------- idempotency


def test_the_kernel_gets_the_request_id_and_a_digest_of_the_call(rig: Rig, channel: grpc.Channel) -> None:
    for labels in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "9"}):
        ask(channel, "AllocContext", pb.AllocContextRequest(request_id="key-1", model="demo", labels=labels))
    callers = [caller for _, caller, _ in rig.kernel.seen]
    assert {caller.request_id for caller in callers} == {"key-1"}
    assert callers[0].digest == callers[1].digest != callers[2].digest


def test_the_same_fields_of_another_verb_have_another_digest(rig: Rig, channel: grpc.Channel) -> None:
    made = ask(channel, "AllocContext", pb.AllocContextRequest(model="demo"))
    ask(channel, "SuspendContext", pb.SuspendContextRequest(request_id="key-1", context_id=made.id))
    ask(channel, "ResumeContext", pb.ResumeContextRequest(request_id="key-1", context_id=made.id))
    first, second = (caller.digest for verb, caller, _ in rig.kernel.seen if verb in ("suspend", "resume"))
    assert first != second


def test_a_call_without_request_id_has_no_digest(rig: Rig, channel: grpc.Channel) -> None:
    ask(channel, "AllocContext", pb.AllocContextRequest(model="demo"))
    assert rig.kernel.seen[0][1].digest == b""


# ------------------------------------------------------------------------------------------------------------------ callers who leave


def test_a_mutation_whose_caller_left_runs_to_its_end_and_is_audited(rig: Rig, channel: grpc.Channel) -> None:
    hold = rig.kernel.hold = asyncio.Event()
    method = method_of(channel, "AllocContext")
    future = method.future(pb.AllocContextRequest(model="demo"), metadata=bearer("user"))
    rig.run(lambda: until(lambda: bool(rig.kernel.seen)))
    future.cancel()

    async def release() -> None:
        await asyncio.sleep(0)
        hold.set()
        await until(lambda: bool(rig.audit.lines))

    rig.run(release)
    assert rig.audit.lines[0][1:4] == ("AllocContext", "demo", "OK")
    assert len(rig.kernel.contexts) == 1


def test_the_kernels_stream_is_closed_when_the_reader_leaves(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.token_interval_s = 3600
    made = ask(channel, "AllocContext", pb.AllocContextRequest(model="demo"))
    events = method_of(channel, "Infer")(pb.InferRequest(context_id=made.id), metadata=bearer("user"))
    assert next(events).WhichOneof("event") == "started"
    assert next(events).WhichOneof("event") == "delta"
    assert rig.kernel.num_streams == 1
    events.cancel()
    rig.run(lambda: until(lambda: rig.kernel.num_streams == 0))


def test_a_deadline_ends_a_stream_and_closes_the_kernels(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.token_interval_s = 3600
    made = ask(channel, "AllocContext", pb.AllocContextRequest(model="demo"))
    method = method_of(channel, "Infer")
    with pytest.raises(grpc.RpcError) as caught:
        list(method(pb.InferRequest(context_id=made.id), metadata=bearer("user"), timeout=0.2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    rig.run(lambda: until(lambda: rig.kernel.num_streams == 0))


async def until(condition: Any) -> None:
    """Give the loop turns until something is so."""
    while not condition():
        await asyncio.sleep(0.001)


# ------------------------------------------------------------------------------------------------------------- health and reflection


def test_health_needs_no_token(channel: grpc.Channel) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="kerneld.v1.Contexts"), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_on_the_local_socket_needs_no_token(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name for service in next(answers).list_services_response.service}
    assert {call.service for call in TABLE.values()} <= names


def test_two_threads_may_call_at_once(rig: Rig, channel: grpc.Channel) -> None:
    threads = [threading.Thread(target=ask, args=(channel, "AllocContext", pb.AllocContextRequest(model="demo"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rig.kernel.contexts) == 8


def test_a_foreign_handle_is_not_found(rig: Rig, channel: grpc.Channel) -> None:
    rig.kernel.failures["stat"] = NotFound("context", NO_SUCH_ID)
    assert refusal(channel, "StatContext", pb.StatContextRequest(context_id=NO_SUCH_ID)).code() is grpc.StatusCode.NOT_FOUND
