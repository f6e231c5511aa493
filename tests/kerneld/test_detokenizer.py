"""Incremental detokenization: never half a character, and all pieces are the whole text."""

from __future__ import annotations

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from kerneld.detokenizer import MAX_PENDING, MAX_SILENT, REPLACEMENT, Detokenizer
from kerneld.tokenizer import Tokenizer

BOS, EOS = 0, 1
TOKENS = st.lists(st.integers(0, 299), max_size=40)


def pieces_of(tokenizer: Tokenizer, tokens: list[int], prefix: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prefix or [])
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


def byte_of(tokenizer: Tokenizer, value: int) -> int:
    """The token of one byte."""
    shown = {chr(value): value for value in (*range(33, 127), *range(161, 173), *range(174, 256))}
    missing = [value for value in range(256) if value not in shown.values()]
    shown |= {chr(256 + i): value for i, value in enumerate(missing)}
    token = tokenizer.id_of({value: text for text, value in shown.items()}[value])
    assert token is not None
    return token


@given(tokens=TOKENS)
def test_all_pieces_are_the_decoded_whole(byte_tokenizer: Tokenizer, tokens: list[int]) -> None:
    assert "".join(pieces_of(byte_tokenizer, tokens)) == byte_tokenizer.decode(tokens)


@given(values=st.lists(st.sampled_from([0x41, 0x80, 0x82, 0xAC, 0xC3, 0xE2, 0xF0, 0x9F, 0x98, 0xFF]), max_size=60))
def test_bytes_that_are_no_utf8_come_as_the_decoder_has_them(byte_tokenizer: Tokenizer, values: list[int]) -> None:
    tokens = [byte_of(byte_tokenizer, value) for value in values]

    assert "".join(pieces_of(byte_tokenizer, tokens)) == byte_tokenizer.decode(tokens)


@given(text=st.text(max_size=30), cut=st.integers(0, 30))
def test_valid_text_never_shows_a_replacement_character(byte_tokenizer: Tokenizer, text: str, cut: int) -> None:
    tokens = [byte_of(byte_tokenizer, value) for value in text.replace(REPLACEMENT, "").encode()]

    pieces = pieces_of(byte_tokenizer, tokens[cut:], tokens[:cut])[:-1]
    whole = pieces_of(byte_tokenizer, tokens)

    assert REPLACEMENT not in "".join(whole)
    assert "".join(whole) == text.replace(REPLACEMENT, "")
    assert "".join(pieces).lstrip(REPLACEMENT) in text


@given(tokens=TOKENS)
def test_little_is_ever_pending(byte_tokenizer: Tokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(byte_tokenizer)
    for token in tokens:
        detokenizer.push(token)
        assert detokenizer.num_pending <= MAX_PENDING + MAX_SILENT


def test_a_character_of_four_tokens_comes_with_the_last(byte_tokenizer: Tokenizer) -> None:
    tokens = [byte_of(byte_tokenizer, value) for value in "😀".encode()]

    assert pieces_of(byte_tokenizer, tokens) == ["", "", "", "😀", ""]


def test_an_unfinished_character_is_replaced_at_the_end(byte_tokenizer: Tokenizer) -> None:
    tokens = [byte_of(byte_tokenizer, value) for value in "€".encode()[:2]]

    assert pieces_of(byte_tokenizer, tokens) == ["", "", REPLACEMENT]


def test_special_tokens_have_no_text_and_do_not_break_a_character(byte_tokenizer: Tokenizer) -> None:
    first, second = (byte_of(byte_tokenizer, value) for value in "é".encode())

    assert pieces_of(byte_tokenizer, [BOS, first, EOS, second, EOS]) == ["", "", "", "é", "", ""]


def test_endless_special_tokens_give_a_character_up(byte_tokenizer: Tokenizer) -> None:
    first = byte_of(byte_tokenizer, 0xC3)

    pieces = pieces_of(byte_tokenizer, [first, *[EOS] * (MAX_SILENT + 1)])

    assert pieces[-2:] == [REPLACEMENT, ""]


def make_fallback_tokenizer() -> Tokenizer:
    """Spaces as in Llama 2: a leading one is cut from the decoded whole; bytes as fallback."""
    vocab = {"<unk>": 0, "▁": 1, "▁the": 2, "▁cat": 3, "s": 4, **{f"<0x{value:02X}>": 5 + value for value in range(256)}}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return Tokenizer(inner)


def fallback_tokens(text: str) -> list[int]:
    return [5 + value for value in text.encode()]


def test_spaces_between_words_are_kept() -> None:
    tokenizer = make_fallback_tokenizer()

    assert pieces_of(tokenizer, [2, 3, 4]) == ["the", " cat", "s", ""]
    assert pieces_of(tokenizer, [3], prefix=[2]) == [" cat", ""]


@given(units=st.lists(st.one_of(st.integers(1, 4), st.sampled_from("é€😀a")), max_size=20))
def test_byte_fallback_decodes_as_a_whole(units: list[int | str]) -> None:
    tokenizer = make_fallback_tokenizer()
    tokens = [token for unit in units for token in ([unit] if isinstance(unit, int) else fallback_tokens(unit))]

    assert "".join(pieces_of(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_a_character_that_was_told_stays_when_bytes_after_it_are_broken() -> None:
    assert "".join(pieces_of(make_fallback_tokenizer(), [*fallback_tokens("é"), 5 + 0xC3])) == "é" + REPLACEMENT
