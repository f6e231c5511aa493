"""Exception <-> gRPC status, both ways."""

from __future__ import annotations

import inspect
import json

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from drivers import errors as driver
from kerneld import errors as kernel
from memory import errors as paging
from memory.remedy import Action, Remedy
from syscalls.status import (
    CODES,
    LOWER,
    MAX_FACT_BYTES,
    from_status,
    holders_fact,
    internal,
    remedies_fact,
    to_status,
    trailers,
    translate,
)

HOLDERS = (paging.Holder("lab/a", 100), paging.Holder("lab/b", 300))
BUGS = {driver.DriverError, driver.HostTierInvalid, driver.PlanRejected, driver.WireError, paging.PagingError, paging.UnknownSpace}


def classes_of(module: object, root: type) -> list[type]:
    """Every error of a floor."""
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, root)]


def sample(cls: type[kernel.KernelError]) -> kernel.KernelError:
    """One error of a class, with all that it can carry."""
    if cls is kernel.InvalidArgument:
        return kernel.InvalidArgument("sampling.top_p", "must be between 0 and 1.")
    if cls is kernel.NotFound:
        return kernel.NotFound("context", "abc")
    return cls("It cannot be.", facts={"tenant": "lab", "limit_bytes": "7"}, retry_after_s=1.5)


def lower_sample(cls: type[Exception]) -> Exception:
    """One error of a lower floor."""
    makers: dict[type, Exception] = {
        paging.OutOfFrames: paging.OutOfFrames("device", 10, 5, HOLDERS),
        paging.NeverFits: paging.NeverFits("device", 10, 5, HOLDERS),
        paging.OverLimit: paging.OverLimit("lab/a", "device", 10, 5, 4),
        paging.GuaranteeConflict: paging.GuaranteeConflict("device", "lab/a", 10, 5, HOLDERS),
        driver.DeviceOutOfMemory: driver.DeviceOutOfMemory(10, 5),
        driver.PageCorrupt: driver.PageCorrupt((1,)),
        driver.HostPageCorrupt: driver.HostPageCorrupt(3, "its checksum"),
    }
    return makers.get(cls) or cls("why")


KERNEL_CLASSES = [cls for cls in classes_of(kernel, kernel.KernelError) if cls is not kernel.KernelError]
LOWER_CLASSES = classes_of(driver, driver.DriverError) + classes_of(paging, paging.PagingError)


@pytest.mark.parametrize("cls", KERNEL_CLASSES, ids=lambda cls: cls.__name__)
def test_a_kernel_error_survives_the_way_there_and_back(cls: type[kernel.KernelError]) -> None:
    error = sample(cls)
    back = from_status(Status.FromString(to_status(error).SerializeToString()))
    assert type(back) is cls
    assert (back.message, back.reason, back.facts, back.retry_after_s) == (error.message, error.reason, error.facts, error.retry_after_s)


@pytest.mark.parametrize("cls", KERNEL_CLASSES, ids=lambda cls: cls.__name__)
def test_every_kernel_error_has_the_code_that_its_file_names(cls: type[kernel.KernelError]) -> None:
    lines = (kernel.__doc__ or "").splitlines()
    line = next(line for line in lines if f"- {cls.__name__} " in line)
    assert CODES[cls].name in line


@pytest.mark.parametrize("cls", LOWER_CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_of_a_lower_floor_has_a_row_or_is_a_bug(cls: type[Exception]) -> None:
    said = translate(lower_sample(cls))
    assert (said is None) == (cls in BUGS)
    assert (cls in LOWER) == (cls not in BUGS)


def test_out_of_frames_names_the_holders_and_when_to_retry() -> None:
    said = translate(paging.OutOfFrames("device", 10, 5, HOLDERS))
    assert isinstance(said, kernel.MemoryExhausted)
    assert said.facts == {"tier": "device", "needed_bytes": "10", "free_bytes": "5", "holders": '{"lab/b": 300, "lab/a": 100}'}
    assert said.retry_after_s is not None


def test_what_can_never_fit_is_a_failed_precondition_with_the_limit() -> None:
    said = translate(paging.NeverFits("device", 10, 5, HOLDERS))
    assert isinstance(said, kernel.CannotFit)
    assert to_status(said).code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert said.facts["limit_bytes"] == "5"


@pytest.mark.parametrize("error", [ValueError("secret prompt"), KeyError("x"), kernel.KernelError("vague"), driver.PlanRejected("x")])
def test_what_nobody_foresaw_is_a_bug(error: Exception) -> None:
    assert translate(error) is None


def test_the_status_of_a_bug_tells_the_error_id_and_nothing_else() -> None:
    status = internal("abc123")
    info = details.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert dict(info.metadata) == {"error_id": "abc123"}
    assert "abc123" in status.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (kernel.InvalidArgument("top_p", "is wrong."), details.BadRequest),
        (kernel.QueueFull("full"), details.QuotaFailure),
        (kernel.CannotFit("never"), details.PreconditionFailure),
        (kernel.Unavailable("soon", retry_after_s=0.25), details.RetryInfo),
    ],
)
def test_errors_carry_the_details_of_their_kind(error: kernel.KernelError, kind: type) -> None:
    assert any(packed.Is(kind.DESCRIPTOR) for packed in to_status(error).details)  # type: ignore[attr-defined]


def test_a_long_error_fits_into_the_trailers_that_clients_accept() -> None:
    error = kernel.QuotaExceeded("ä" * 100_000, facts={f"k{i}": "語" * 10_000 for i in range(100)})
    status = to_status(error)
    details_bytes = sum(len(value) * 4 // 3 for _, value in trailers(status))
    assert details_bytes + 3 * len(status.message.encode()) < 8192


def test_the_fact_of_the_holders_leaves_out_the_smallest_when_there_are_many() -> None:
    holders = tuple(paging.Holder(f"lab/group/person-{i}", i) for i in range(200))
    assert holders_fact(holders).startswith('{"lab/group/person-199": 199')
    assert len(holders_fact(holders)) <= 400


def test_a_status_of_another_maker_becomes_the_error_of_its_code() -> None:
    assert type(from_status(Status(code=14, message="gone"))) is kernel.Unavailable
    assert type(from_status(Status(code=13, message="odd"))) is kernel.KernelError


def test_an_error_of_memory_carries_holders_and_remedies_in_facts_and_details() -> None:
    error = paging.NeverFits("device", 10, 5, HOLDERS)
    error.advise([Remedy(Action.RAISE_LIMIT, "device", 10, "lab/a"), Remedy(Action.UNLOAD, "device", 12, "models", "toy")])
    said = translate(error)
    assert said is not None
    assert said.facts["remedy"] == "raise the device limit of lab/a to 10 B"
    assert [item["action"] for item in json.loads(said.facts["remedies"])] == ["raise_limit", "unload"]
    assert said.message.endswith("What would help: raise the device limit of lab/a to 10 B.")

    found = details.PreconditionFailure()
    unpacked = [found for packed in to_status(said).details if packed.Unpack(found)]
    kinds = [(violation.type, violation.subject) for violation in unpacked[-1].violations]
    assert kinds == [("HOLDER", "lab/b"), ("HOLDER", "lab/a"), ("REMEDY", "lab/a"), ("REMEDY", "toy")]


def test_remedies_that_are_too_long_for_a_fact_are_left_out_from_the_end() -> None:
    remedies = [Remedy(Action.FREE, "device", 10, "t" * 100, "c" * 32)] * 4
    text = remedies_fact(remedies)
    assert len(text) <= MAX_FACT_BYTES
    assert 0 < len(json.loads(text)) < 4
