"""Calls as data: what cannot be sent is refused before anything is, in the words of the caller."""

from __future__ import annotations

from typing import Any

import pytest

from kerneld_client import calls
from kerneld_client.errors import InvalidArgument

CONTEXT_ID = "ab" * 16


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tokens": "import os"}, "tokens: is a list of token ids; text goes into text=."),
        ({"tokens": 7}, "tokens: is a list of token ids"),
        ({"tokens": [1, -1]}, "tokens: "),
        ({"messages": "hello"}, r"messages\[0\]: has role and content"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: has role and content"),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"max_tokens": [1]}, "max_tokens: "),
    ],
)
def test_an_input_of_another_form_is_refused_by_the_name_it_was_given(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        calls.infer(CONTEXT_ID, None, options)  # type: ignore[arg-type]


def test_an_option_that_there_is_none_of_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"There is no option 'bogus'; there are .*draft_model, draft_tokens.*temperature"):
        calls.infer(CONTEXT_ID, "hello", {"bogus": 1})  # type: ignore[typeddict-unknown-key]
