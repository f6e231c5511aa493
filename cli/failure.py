"""How a command fails: one sentence on stderr, what to do about it, and an exit code that scripts may rely on.

0  done
1  error
2  usage: the command, or a value in it, is wrong
3  not found
4  not allowed, or not logged in
5  the daemon cannot be reached, is starting, or is draining
6  a limit is reached, or there is no room, now or ever; the message says what would help
7  the object is in the wrong state, or the name is taken
8  the deadline passed
130  interrupted
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cli.render import bytes_text, write_note

if TYPE_CHECKING:
    from kerneld_client.errors import KerneldError

EXIT_ERROR = 1
EXIT_UNAVAILABLE = 5
EXIT_NO_ROOM = 6
EXIT_INTERRUPTED = 130
EXIT_CODES = {
    "INVALID_ARGUMENT": 2,
    "OUT_OF_RANGE": 2,
    "NOT_FOUND": 3,
    "UNAUTHENTICATED": 4,
    "PERMISSION_DENIED": 4,
    "UNAVAILABLE": EXIT_UNAVAILABLE,
    "RESOURCE_EXHAUSTED": EXIT_NO_ROOM,
    "FAILED_PRECONDITION": 7,
    "ALREADY_EXISTS": 7,
    "ABORTED": 7,
    "DEADLINE_EXCEEDED": 8,
    "CANCELLED": EXIT_INTERRUPTED,
}
# A request's own end, where it is neither the model's nor its limit's.
FINISH_CODES = {"error": EXIT_ERROR, "deadline": EXIT_CODES["DEADLINE_EXCEEDED"], "cancelled": EXIT_CODES["CANCELLED"]}
# What to do, where the message does not say it: those of OUT_OF_RANGE and FAILED_PRECONDITION do.
ADVICE = {
    "INVALID_ARGUMENT": "Mend the command; --help says what is accepted.",
    "NOT_FOUND": "List what there is with `ps`, `model ls`, `ckpt ls` or `tenant ls`; what belongs to others is not shown.",
    "UNAUTHENTICATED": "Over TCP give --token-file; `kernelctl token add` makes tokens.",
    "PERMISSION_DENIED": "See who you are with `kernelctl whoami`, and ask an administrator for a role or the owner for a grant.",
    "UNAVAILABLE": "Start it, or name its socket (--socket, KERNELD_SOCKET); `kernelctl doctor` looks further.",
    "RESOURCE_EXHAUSTED": "Wait and try again, or free contexts; `kernelctl ps` lists them.",
    "ALREADY_EXISTS": "Choose another name.",
    "ABORTED": "Nothing happened: repeat the command.",
    "DEADLINE_EXCEEDED": "Try again, or allow more time.",
    "DATA_LOSS": "`kernelctl ckpt verify` says which images are whole, `kernelctl fsck` what else is.",
    "INTERNAL": "This is a defect of the daemon: please report it with the error id.",
}

WHERE_TO_LOOK = {
    "context": "`kernelctl ps` lists your contexts.",
    "request": "What belongs to others is not shown.",
    "request or context": "`kernelctl why` lists requests that wait or run, `kernelctl ps` contexts; what belongs to others is not shown.",
    "image": "`kernelctl ckpt ls` lists your images.",
    "model": "`kernelctl model ls` lists models; `kernelctl model load FOLDER --name NAME` brings one in.",
    "tenant": "`kernelctl tenant ls` lists tenants.",
    "sharing group": "`kernelctl share-group ls` lists those that you may use.",
    "token": "`kernelctl token ls` lists tokens.",
}


def client_errors() -> type[KerneldError]:
    """The client's errors. Called only when something was raised, so that a command that fails early does not load the client."""
    from kerneld_client.errors import KerneldError

    return KerneldError


def code_name(error: KerneldError) -> str:
    """Name of the gRPC status of an error."""
    return str(getattr(error.code, "name", error.code)).upper()


def advice_for(error: KerneldError) -> str:
    """What to do about an error; empty where its message says it all."""
    name = code_name(error)
    if name == "NOT_FOUND":
        return WHERE_TO_LOOK.get(error.facts.get("noun", ""), ADVICE[name])
    if name == "UNAVAILABLE" and error.reason:  # the daemon itself said so
        return "Try again in a moment."
    return ADVICE.get(name, "")


def exit_code_of(error: KerneldError) -> int:
    """The exit code of an error. What can never fit is in the wrong state for the protocol, and out of room for whoever reads the code."""
    name = code_name(error)
    is_out_of_room = name == "FAILED_PRECONDITION" and "tier" in error.facts
    return EXIT_NO_ROOM if is_out_of_room else EXIT_CODES.get(name, EXIT_ERROR)


def report(error: KerneldError) -> int:
    """Say what went wrong and what to do, and return the exit code."""
    message = str(error).strip()
    write_note(f"error: {message}" + ("" if message.endswith((".", "?", "!")) else "."))
    holders: dict[str, int] = getattr(error, "holders", {})
    if holders and "Held by" not in message:
        write_note("held by: " + ", ".join(f"{owner} {bytes_text(size)}" for owner, size in holders.items()))
    retry_after_s = getattr(error, "retry_after_s", None)
    advice = advice_for(error)
    if retry_after_s:
        advice = "" if "try again in" in message else f"Try again in {math.ceil(retry_after_s)} s."
    if advice:
        write_note(advice)
    return exit_code_of(error)


@contextmanager
def failures_end_with(end: Callable[[int], None]) -> Iterator[None]:
    """Turn the client's errors, and an interrupt, into a sentence and an exit code."""
    try:
        yield
    except (KeyboardInterrupt, click.Abort):
        write_note("\nInterrupted." if sys.stderr.isatty() else "Interrupted.")  # a terminal has just shown ^C
        end(EXIT_INTERRUPTED)
    except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
        raise  # click's own business; and the client need not be loaded to see that
    except client_errors() as error:
        end(report(error))
