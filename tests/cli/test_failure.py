"""What a failed command says, and its exit code."""

from __future__ import annotations

import grpc
import pytest

from kerneld_client import errors
from kerneld_client.errors import KerneldError
from tests.cli.fake_client import Kernelctl


@pytest.mark.parametrize(
    ("error", "exit_code", "advice"),
    [
        (errors.InvalidArgument("nice: is too large"), 2, "--help"),
        (errors.OutOfRange("too long"), 2, ""),
        (errors.NotFound("There is no context 'c1'."), 3, "`ps`"),
        (errors.NotFound("There is no model 'm'.", facts={"noun": "model"}), 3, "model load"),
        (errors.Unauthenticated("nobody"), 4, "--token-file"),
        (errors.PermissionDenied("no"), 4, "whoami"),
        (errors.Unavailable("not there"), 5, "KERNELD_SOCKET"),
        (errors.Draining("draining", reason="DRAINING"), 5, "in a moment"),
        (errors.QuotaExceeded("too many", retry_after_s=7), 6, "Try again in 7 s."),
        (errors.MemoryExhausted("full"), 6, "`kernelctl ps`"),
        (errors.CannotFit("too large", facts={"tier": "device"}), 6, ""),
        (errors.WrongState("could not be loaded", facts={"tier": "device"}), 6, ""),
        (errors.WrongState("busy"), 7, ""),
        (errors.AlreadyExists("taken"), 7, "another name"),
        (errors.Conflict("lost"), 7, "repeat"),
        (errors.DeadlineExceeded("late"), 8, "more time"),
        (errors.DataLoss("checksum"), 1, "ckpt verify"),
        (errors.Internal("bug"), 1, "report"),
        (KerneldError("odd", code=grpc.StatusCode.UNKNOWN), 1, ""),
    ],
)
def test_a_failure_is_a_sentence_advice_and_an_exit_code(kernelctl: Kernelctl, error: KerneldError, exit_code: int, advice: str) -> None:
    kernelctl.client.error = error

    failed = kernelctl("ps", "-o", "json")

    assert failed.exit_code == exit_code
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"error: {error.message.rstrip('.')}.\n")
    assert advice in failed.stderr


def test_an_error_of_memory_names_the_holders(kernelctl: Kernelctl) -> None:
    kernelctl.client.error = errors.CannotFit("needs 2 GiB", facts={"holders": '{"lab": 1048576, "solo": 512}'})

    assert "held by: lab 1MiB, solo 512\n" in kernelctl("infer", "c1").stderr
    kernelctl.client.error = errors.CannotFit("Held by lab (1 MiB).", facts={"holders": '{"lab": 1048576}'})
    assert kernelctl("infer", "c1").stderr == "error: Held by lab (1 MiB).\n"


def test_control_characters_in_an_error_are_shown_not_obeyed(kernelctl: Kernelctl) -> None:
    kernelctl.client.error = errors.NotFound("no \x1b[2J such")

    assert "no \\x1b[2J such" in kernelctl("ps").stderr
