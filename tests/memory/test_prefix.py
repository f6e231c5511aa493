"""Names of pages."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.prefix import HashChain

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, person=b"kerneld.page").digest()


def chain(*tokens: int, seed: bytes = b"seed") -> HashChain:
    made = HashChain(seed, 4)
    made.extend(tokens)
    return made


@given(TOKENS, st.integers(0, 40))
def test_keys_do_not_depend_on_how_the_tokens_came(tokens: list[int], cut: int) -> None:
    pieces = chain(*tokens[:cut])
    pieces.extend(tokens[cut:])

    assert pieces.keys == chain(*tokens).keys
    assert pieces.partial_key() == chain(*tokens).partial_key()
    assert pieces.num_tokens == len(tokens)
    assert len(pieces.keys) == len(tokens) // 4  # invariant 1


@given(TOKENS, st.integers(0, 40))
def test_a_truncated_chain_is_the_chain_of_fewer_tokens(tokens: list[int], num_tokens: int) -> None:
    num_tokens = min(num_tokens, len(tokens))
    whole = chain(*tokens)

    whole.truncate(num_tokens, tokens[num_tokens // 4 * 4 : num_tokens])

    assert whole.keys == chain(*tokens[:num_tokens]).keys
    assert whole.partial_key() == chain(*tokens[:num_tokens]).partial_key()


def test_a_key_is_the_hash_of_the_key_before_it_and_the_tokens_in_little_endian() -> None:
    root = digest(b"seed")
    first = digest(root + struct.pack("<4I", 1, 2, 3, 4))
    second = digest(first + struct.pack("<4I", 5, 6, 7, 8))

    assert chain(1, 2, 3, 4, 5, 6, 7, 8).keys == [first, second]


def test_a_key_names_everything_before_the_page_too() -> None:
    assert chain(1, 2, 3, 4, 5, 6, 7, 8).keys[1] != chain(0, 2, 3, 4, 5, 6, 7, 8).keys[1]


def test_two_seeds_never_share_a_key() -> None:
    assert chain(1, 2, 3, 4).keys != chain(1, 2, 3, 4, seed=b"other").keys


def test_there_is_no_partial_key_without_a_partial_page() -> None:
    assert chain(1, 2, 3, 4).partial_key() == b""
    assert chain(1, 2, 3, 4, 5).partial_key() != b""


def test_a_fork_goes_its_own_way() -> None:
    parent = chain(1, 2, 3, 4, 5)
    child = parent.fork()

    child.extend([6, 7, 8])
    parent.extend([9, 9, 9])

    assert child.keys == chain(1, 2, 3, 4, 5, 6, 7, 8).keys
    assert parent.keys == chain(1, 2, 3, 4, 5, 9, 9, 9).keys


def test_a_chain_is_not_cut_to_tokens_that_are_not_given() -> None:
    whole = chain(1, 2, 3, 4, 5)

    with pytest.raises(ValueError, match="tail"):
        whole.truncate(3, [1, 2])
    assert whole.num_tokens == 5
