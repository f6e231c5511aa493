"""Tokenizers as files of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from kerneld.errors import InvalidArgument
from kerneld.tokenizer import Tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A copy that a test may spoil, as the library has it."""
    copy = tokenizers.Tokenizer.from_str(tokenizer._inner.to_str())
    copy.save(str(directory / "tokenizer.json"))
    return copy


@given(text=st.text(max_size=40))
def test_text_comes_back_from_its_tokens(byte_tokenizer: Tokenizer, text: str) -> None:
    assert byte_tokenizer.decode(byte_tokenizer.encode(text)) == text


def test_a_directory_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert Tokenizer.load(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"model": {"type": "Nonsense"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(InvalidArgument, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_saved_tokenizer_is_loaded(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    write_tokenizer(tmp_path, byte_tokenizer)

    loaded = Tokenizer.load(tmp_path)

    assert loaded is not None
    assert (loaded.vocab_size, loaded.special_tokens) == (byte_tokenizer.vocab_size, frozenset({0, 1}))
    assert loaded.encode("def hello") == byte_tokenizer.encode("def hello")


def test_truncation_in_the_file_does_not_shorten_prompts(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    copy = write_tokenizer(tmp_path, byte_tokenizer)
    copy.enable_truncation(3)
    copy.enable_padding(length=64)

    assert Tokenizer(copy).encode("a b c d e f") == byte_tokenizer.encode("a b c d e f")


def test_special_tokens_open_a_text_and_never_end_it(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    copy = write_tokenizer(tmp_path, byte_tokenizer)
    copy.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)])
    tokenizer = Tokenizer(copy)

    assert tokenizer.encode("hi", add_special_tokens=True) == [0, *byte_tokenizer.encode("hi")]
    assert tokenizer.encode("hi") == byte_tokenizer.encode("hi")


def test_tokens_have_ids_by_their_text(byte_tokenizer: Tokenizer) -> None:
    assert (byte_tokenizer.id_of("<eos>"), byte_tokenizer.id_of("no such token")) == (1, None)


def test_ids_that_it_does_not_know_have_no_text(byte_tokenizer: Tokenizer) -> None:
    assert byte_tokenizer.decode([299 + 1000]) == ""
