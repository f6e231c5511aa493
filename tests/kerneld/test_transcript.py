"""From tokens to the output log: settled text, stops cut, nothing lost at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drivers.contract import TokenLogprob
from kerneld.stream import OutputLog
from kerneld.tokenizer import Tokenizer
from kerneld.transcript import Transcript

EOS = 1
TOKENS = st.lists(st.integers(0, 299), max_size=30)


def make_log() -> OutputLog:
    return OutputLog(0, lambda: 0.0)


def texts(log: OutputLog) -> tuple[tuple[int, ...], str]:
    delta = log.delta(0)
    return delta.tokens, delta.text


def test_tokens_are_shown_as_they_come(byte_tokenizer: Tokenizer) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer)
    tokens = byte_tokenizer.encode("return 'x'")

    ends = []
    for token in tokens:
        transcript.push(token)
        ends.append(log.end)

    assert ends == list(range(1, len(tokens) + 1))
    assert texts(log) == (tuple(tokens), "return 'x'")


def test_a_token_inside_a_character_waits_for_the_rest(byte_tokenizer: Tokenizer) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer)
    tokens = byte_tokenizer.encode("☃")

    for token in tokens[:-1]:
        transcript.push(token)
    seen_inside = log.end
    transcript.push(tokens[-1])

    assert (seen_inside, log.end, log.delta(0).text) == (0, len(tokens), "☃")


def test_a_stop_cuts_its_text_and_keeps_its_tokens(byte_tokenizer: Tokenizer) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer, stops=["XY"])
    tokens = byte_tokenizer.encode("aXbXY")

    hits = [transcript.push(token) for token in tokens]
    transcript.close()

    assert hits == [False] * (len(tokens) - 1) + [True]
    assert texts(log) == (tuple(tokens), "aXb")


def test_text_that_may_begin_a_stop_is_shown_at_the_end(byte_tokenizer: Tokenizer) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer, stops=["XYZ"])
    tokens = byte_tokenizer.encode("aXY")

    for token in tokens:
        transcript.push(token)
    before = log.delta(0).text
    transcript.close()

    assert (before, log.delta(0).text) == ("a", "aXY")


def test_a_token_that_ends_the_output_has_no_text(byte_tokenizer: Tokenizer) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer)
    (token,) = byte_tokenizer.encode("a")
    transcript.push(token, TokenLogprob(-1.0))

    transcript.push_end(token, TokenLogprob(-1.0))
    transcript.close()

    assert texts(log) == ((token, token), "a")


def test_an_unfinished_character_at_the_end_is_replaced(byte_tokenizer: Tokenizer) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer)
    first = byte_tokenizer.encode("☃")[0]

    transcript.push(first)
    transcript.close()

    assert texts(log) == ((first,), "\ufffd")


def test_without_a_tokenizer_there_are_tokens_alone() -> None:
    log = make_log()
    transcript = Transcript(log, None, stops=["x"])

    transcript.push(7)
    transcript.close()

    assert texts(log) == ((7,), "")


@given(tokens=TOKENS, stops=st.lists(st.text("aeron ()", min_size=1, max_size=3), max_size=3))
def test_what_is_shown_is_the_text_up_to_the_first_stop(byte_tokenizer: Tokenizer, tokens: list[int], stops: list[str]) -> None:
    log = make_log()
    transcript = Transcript(log, byte_tokenizer, stops)
    pushed: list[int] = []
    shown: list[tuple[tuple[int, ...], str]] = []
    for token in tokens:
        pushed.append(token)
        is_stopped = transcript.push(token)
        shown.append(texts(log))
        if is_stopped:
            break
    transcript.close()

    final_tokens, final_text = texts(log)
    whole = byte_tokenizer.decode(pushed)
    assert final_tokens == tuple(pushed)
    assert whole.startswith(final_text)
    assert final_text == whole or any(whole.startswith(stop, len(final_text)) for stop in stops)
    assert not any(stop in final_text for stop in stops)
    assert all(final_tokens[: len(seen)] == seen and final_text.startswith(text) for seen, text in shown)  # nothing shown changes
