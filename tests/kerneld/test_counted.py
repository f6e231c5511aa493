"""A count and its noun."""

from __future__ import annotations

import pytest

from kerneld.counted import counted


@pytest.mark.parametrize(("count", "text"), [(0, "0 requests"), (1, "1 request"), (2, "2 requests")])
def test_one_is_singular(count: int, text: str) -> None:
    assert counted(count, "request") == text
