"""Typed exceptions: each error of the kernel arrives as its namesake."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status

from kerneld import errors as kernel
from kerneld_client import errors
from syscalls.status import CODES, internal, to_status, trailers

CLASSES = [cls for _, cls in inspect.getmembers(kernel, inspect.isclass) if issubclass(cls, kernel.KernelError)]


class Failed(grpc.RpcError):
    """A call that ended in a status."""

    def __init__(self, status: Status, *, with_details: bool = True) -> None:
        self._status = status
        self._with_details = with_details

    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self._status.code)

    def details(self) -> str:
        return str(self._status.message)

    def trailing_metadata(self) -> Any:
        return trailers(self._status) if self._with_details else None


def sample(cls: type[kernel.KernelError]) -> kernel.KernelError:
    """One error of a class."""
    if cls is kernel.InvalidArgument:
        return kernel.InvalidArgument("sampling.top_p", "must be between 0 and 1.")
    if cls is kernel.NotFound:
        return kernel.NotFound("context", "abc")
    return cls("It cannot be.", facts={"tenant": "lab"}, retry_after_s=1.5)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls in CODES], ids=lambda cls: cls.__name__)
def test_every_kernel_error_arrives_as_its_namesake(cls: type[kernel.KernelError]) -> None:
    error = sample(cls)
    came = errors.from_rpc_error(Failed(to_status(error)))
    assert type(came).__name__ == cls.__name__
    assert (came.code, came.reason, came.facts) == (CODES[cls], error.reason, error.facts)
    assert (came.message, came.retry_after_s) == (error.message, error.retry_after_s)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls in CODES], ids=lambda cls: cls.__name__)
def test_the_tree_is_the_kernels(cls: type[kernel.KernelError]) -> None:
    mine = getattr(errors, cls.__name__)
    for ancestor in cls.__mro__[1:]:
        if ancestor in CODES:
            assert issubclass(mine, getattr(errors, ancestor.__name__))
    assert issubclass(mine, errors.KerneldError)
    assert mine.default_code is CODES[cls]


def test_a_bug_carries_its_id() -> None:
    came = errors.from_rpc_error(Failed(internal("abc123")))
    assert isinstance(came, errors.Internal)
    assert came.error_id == "abc123"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_status_without_details_is_the_error_of_its_code(code: grpc.StatusCode) -> None:
    came = errors.from_rpc_error(Failed(Status(code=code.value[0], message="x"), with_details=False))
    assert type(came) is errors.BY_CODE.get(code, errors.KerneldError)
    assert (came.code, came.reason) == (code, "")


def test_facts_that_are_odd_are_no_trouble() -> None:
    error = errors.CannotFit("x", facts={"needed_bytes": "many", "holders": "[1"})
    assert (error.needed_bytes, error.limit_bytes, error.holders) == (None, None, {})
    assert errors.CannotFit("x", facts={"holders": "[1]"}).holders == {}


def test_both_kinds_of_no_room_are_one_class_to_catch() -> None:
    assert issubclass(errors.CannotFit, errors.DeviceOutOfMemory)
    assert issubclass(errors.MemoryExhausted, errors.DeviceOutOfMemory)
