"""Contexts end to end: streams, forks, edits, scores, chats."""

from __future__ import annotations

from typing import Any

import pytest

import kerneld_client
from kerneld_client import Client
from tests.e2e.rig import MODEL

PROMPT = "def read(path):\n"


def test_a_stream_gives_what_the_context_holds(k: Client) -> None:
    with k.alloc("demo") as context:
        stream = context.infer(PROMPT, max_tokens=40, temperature=0, ignore_eos=True)
        deltas = list(stream)
        result = stream.result()
        held = context.read(deltas[0].offset)
    assert [token for delta in deltas for token in delta.tokens] == list(result.tokens) == list(held.tokens)
    assert "".join(delta.text for delta in deltas) == result.text
    assert len(result.tokens) == 40
    assert result.finish_reason == "length"
    assert result.usage.output_tokens == 40


def test_greedy_output_does_not_depend_on_how_it_was_asked_for(k: Client) -> None:
    with k.alloc("demo") as at_once, k.alloc("demo") as in_parts:
        whole = at_once.infer(PROMPT, max_tokens=36, temperature=0, ignore_eos=True).result().tokens
        parts = in_parts.infer(PROMPT, max_tokens=12, temperature=0, ignore_eos=True).result().tokens
        for _ in range(2):
            parts += in_parts.infer(max_tokens=12, temperature=0, ignore_eos=True).result().tokens
    assert parts == whole


def test_forks_share_their_past_and_differ_afterwards(k: Client) -> None:
    with k.alloc("demo", seed=3) as parent:
        parent.infer(PROMPT * 6, max_tokens=8, temperature=0, ignore_eos=True).result()
        with parent.fork() as child:
            assert child.stat().parent == parent.id
            assert child.stat().pages.shared >= 2
            first = parent.infer(max_tokens=24, temperature=1.0, ignore_eos=True).result().tokens
            second = child.infer(max_tokens=24, temperature=1.0, ignore_eos=True).result().tokens
            past = parent.stat().num_tokens - 24
            assert parent.read(0, past).tokens == child.read(0, past).tokens
    assert first != second


def test_a_seed_repeats_a_sampled_continuation(k: Client) -> None:
    outputs = []
    for _ in range(2):
        with k.alloc("demo") as context:
            outputs.append(context.infer(PROMPT, max_tokens=24, temperature=1.0, seed=11, ignore_eos=True).result().tokens)
    assert outputs[0] == outputs[1]


def test_truncate_rolls_back_and_continues_as_before(k: Client) -> None:
    with k.alloc("demo") as context:
        first = context.infer(PROMPT, max_tokens=30, temperature=0, ignore_eos=True).result()
        context.truncate(first.offset)
        again = context.infer(max_tokens=30, temperature=0, ignore_eos=True).result()
    assert again.tokens == first.tokens


def test_a_suspended_context_continues_after_resume(k: Client) -> None:
    with k.alloc("demo") as context, k.alloc("demo") as undisturbed:
        context.infer(PROMPT, max_tokens=20, temperature=0, ignore_eos=True).result()
        context.suspend()
        with pytest.raises(kerneld_client.KerneldError) as refusal:
            context.infer(max_tokens=4).result()
        context.resume()
        rest = context.infer(max_tokens=20, temperature=0, ignore_eos=True).result().tokens
        whole = undisturbed.infer(PROMPT, max_tokens=40, temperature=0, ignore_eos=True).result().tokens
    assert refusal.value.code.name == "FAILED_PRECONDITION"
    assert rest == whole[20:]


def test_score_agrees_with_the_logprobs_of_generation_and_leaves_no_trace(k: Client) -> None:
    with k.alloc("demo") as context:
        start = context.infer(PROMPT, max_tokens=1, temperature=0, ignore_eos=True).result().offset + 1
        generated = context.infer(max_tokens=8, temperature=0, logprobs=0, ignore_eos=True).result()
        context.truncate(start)
        score = context.score(tokens=list(generated.tokens))
        assert context.stat().num_tokens == start
    assert score.tokens == generated.tokens
    assert [item.logprob for item in score.logprobs] == pytest.approx([item.logprob for item in generated.logprobs], abs=1e-3)


def test_chat_messages_go_through_the_models_template(k: Client) -> None:
    with k.alloc("demo") as context:
        result = context.infer(messages=[{"role": "user", "content": "hello"}], max_tokens=8).result()
        assert "hello" in context.read(0).text
    assert result.usage.input_tokens > 1


def test_a_stop_string_ends_the_text_before_it(k: Client) -> None:
    with k.alloc("demo") as context:
        free = context.infer(PROMPT, max_tokens=40, temperature=0, ignore_eos=True).result()
        stop = free.text[5:9]
        context.truncate(free.offset)
        cut = context.infer(max_tokens=40, temperature=0, ignore_eos=True, stop=[stop]).result()
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_cancel_ends_a_request_and_keeps_its_tokens(k: Client) -> None:
    with k.alloc("demo") as context:
        stream = context.infer(PROMPT, max_tokens=900, temperature=0, ignore_eos=True)
        first = next(iter(stream))
        stream.cancel()
        result = stream.result()
        assert result.finish_reason == "cancelled"
        assert context.stat().state == "idle"
        assert context.stat().num_tokens >= first.offset + len(first.tokens)


def test_a_second_reader_attaches_from_any_offset(k: Client) -> None:
    with k.alloc("demo") as context:
        result = context.infer(PROMPT, max_tokens=30, temperature=0, ignore_eos=True).result()
        late = context.attach(result.offset + 10).result()
        everything = context.attach(0).result()
    assert late.tokens == result.tokens[10:]
    assert everything.tokens[-30:] == result.tokens


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_tokens": 8, "temperature": -1.0}, "INVALID_ARGUMENT"),
        ({"max_tokens": 8, "top_p": 0.0}, "INVALID_ARGUMENT"),
        ({"max_tokens": 8, "tokens": [999_999]}, "INVALID_ARGUMENT"),
        ({"max_tokens": 8, "tokens": [5] * 2000}, "OUT_OF_RANGE"),
        ({"max_tokens": 8, "stop": [""]}, "INVALID_ARGUMENT"),
        ({}, "INVALID_ARGUMENT"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(k: Client, options: dict[str, Any], code: str) -> None:
    with k.alloc("demo") as context:
        with pytest.raises(kerneld_client.KerneldError) as refusal:
            context.infer(**options).result()
        assert refusal.value.code.name == code
        assert context.stat().num_tokens == 0
        assert context.stat().state == "idle"


def test_a_model_comes_back_after_an_unload_with_its_contexts(k: Client) -> None:
    with k.alloc("demo") as context, k.alloc("demo") as undisturbed:
        first = context.infer(PROMPT * 4, max_tokens=12, temperature=0, ignore_eos=True).result().tokens
        k.unload("demo")
        assert k.model("demo").state == "registered"
        k.load(str(MODEL), name="demo")
        second = context.infer(max_tokens=12, temperature=0, ignore_eos=True).result().tokens
        whole = undisturbed.infer(PROMPT * 4, max_tokens=24, temperature=0, ignore_eos=True).result().tokens
    assert first + second == whole
