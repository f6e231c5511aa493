"""Failpoints: what can be armed, and that the register is complete."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from kerneld import failpoints

ROOT = Path(__file__).parents[2]


def hits_in(path: Path) -> set[str]:
    """Return the names that a source file passes to `hit`."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    named = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "hit" and call.args)
    return {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)}


def test_every_name_in_the_register_is_in_the_code_and_the_other_way_round() -> None:
    sources = [path for path in (ROOT / "kerneld").rglob("*.py") if path.name != "failpoints.py"]
    assert set().union(*(hits_in(path) for path in sources)) == failpoints.NAMES


def test_several_points_can_be_armed() -> None:
    armed = failpoints.parse("journal.sync.before=error:EIO; store.commit.before=kill,after:3,times:1;")
    assert {name: (failure.error_number, failure.passes_left, failure.times_left) for name, failure in armed.items()} == {
        "journal.sync.before": (5, 0, math.inf),
        "store.commit.before": (0, 3, 1),
    }


@pytest.mark.parametrize(
    "text",
    ["nothing=kill", "journal.sync.before", "journal.sync.before=error:EWHAT", "journal.sync.before=after:1", "journal.sync.before=boom"],
)
def test_what_cannot_be_armed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="KERNELD_FAILPOINTS"):
        failpoints.parse(text)


def test_nothing_is_armed_without_the_variable() -> None:
    failpoints.hit("journal.append.before_write")
