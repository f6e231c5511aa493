"""Remedies as sentences."""

from __future__ import annotations

import pytest

from memory.errors import Holder, OutOfFrames
from memory.remedy import Action, Remedy, sentence, size_text

ID = "c" * 32


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1025, "1025 B"), (10 << 10, "10 KiB"), (10241, "11 KiB"), (3 << 30, "3 GiB")],
)
def test_a_size_is_never_said_smaller_than_it_is(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("remedy", "text"),
    [
        (Remedy(Action.RAISE_LIMIT, "device", 512 << 20, "lab/ann"), "raise the device limit of lab/ann to 512 MiB"),
        (Remedy(Action.LOWER_GUARANTEE, "host", 1 << 20, "lab"), "lower the host guarantee of lab to 1 MiB"),
        (Remedy(Action.SUSPEND, "device", 14 << 20, "lab/ann", ID), "suspend context cccccccccccc of lab/ann to disk (14 MiB)"),
        (Remedy(Action.FREE, "device", 14 << 20, "lab/ann"), "free a context of lab/ann (14 MiB)"),
        (
            Remedy(Action.CANCEL, "device", 1 << 20, "bob", ID),
            "cancel the request of context cccccccccccc of bob, or wait for its end (1 MiB)",
        ),
        (Remedy(Action.UNLOAD, "device", 4 << 20, "models", "toy"), "unload the model toy (4 MiB)"),
        (Remedy(Action.UNPIN, "device", 4 << 20, "models", "toy"), "unpin the model toy (4 MiB)"),
        (Remedy(Action.SHORTEN, "device", 2 << 20, "bob"), "keep the context's KV within 2 MiB"),
        (Remedy(Action.ENLARGE, "device", 21 << 20), "give the device tier 21 MiB (memory.device_bytes)"),
        (Remedy(Action.ENLARGE, "disk", 21 << 20), "give the disk tier 21 MiB (memory.page_file_bytes)"),
    ],
)
def test_every_remedy_is_an_order_that_a_person_can_follow(remedy: Remedy, text: str) -> None:
    assert remedy.text == text


def test_changes_that_help_together_are_said_together() -> None:
    parts = [Remedy(Action.UNLOAD, "device", size, "models", name, is_part=True) for name, size in (("a", 20), ("b", 10))]

    assert sentence(parts) == "What would help, together: unload the model a (20 B); unload the model b (10 B)."


def test_an_error_says_once_what_would_help() -> None:
    error = OutOfFrames("device", 10, 4, (Holder("lab", 6),))
    unload = Remedy(Action.UNLOAD, "device", 12, "models", "toy")

    error.advise([])
    error.advise([unload, Remedy(Action.ENLARGE, "device", 20)])
    error.advise([Remedy(Action.ENLARGE, "device", 30)])

    assert (
        str(error)
        == "The device tier has 4 B free or reclaimable, 10 B are needed. Held by lab (6 B). What would help: unload the model toy (12 B)."
    )
    assert error.remedies[0] is unload
    assert sentence(()) == ""
