"""What a call may hold: every bound, from both sides."""

from __future__ import annotations

import math

import msgspec
import pytest

from drivers.contract import Sampling
from kerneld.bounds import Bounds, check_fork, check_nice, check_sampling, check_seed, check_tokens
from kerneld.calls import ChatInput, ForkArgs, InferArgs, InferInput, TextInput, TokenInput
from kerneld.config import KerneldConfig
from kerneld.errors import InvalidArgument

CONFIG = KerneldConfig(max_text_bytes=10, max_messages=2, max_stop_strings=2, max_stop_bytes=4, max_labels=2, max_label_bytes=4)
BOUNDS = Bounds(CONFIG)

GOOD_SAMPLING = [
    {"temperature": 0.0},
    {"temperature": 100.0},
    {"top_k": 0},
    {"top_p": 1e-9},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"repetition_penalty": 10.0},
    {"presence_penalty": -2.0},
    {"frequency_penalty": 2.0},
    {"seed": (1 << 64) - 1},
    {"num_logprobs": -1},
    {"num_logprobs": 20},
]
BAD_SAMPLING = [
    ("sampling.temperature", {"temperature": -0.1}),
    ("sampling.temperature", {"temperature": 100.1}),
    ("sampling.temperature", {"temperature": math.nan}),
    ("sampling.temperature", {"temperature": math.inf}),
    ("sampling.top_k", {"top_k": -1}),
    ("sampling.top_p", {"top_p": 0.0}),
    ("sampling.top_p", {"top_p": 1.01}),
    ("sampling.top_p", {"top_p": math.nan}),
    ("sampling.min_p", {"min_p": -0.01}),
    ("sampling.min_p", {"min_p": 1.01}),
    ("sampling.repetition_penalty", {"repetition_penalty": 0.0}),
    ("sampling.repetition_penalty", {"repetition_penalty": 10.1}),
    ("sampling.presence_penalty", {"presence_penalty": 2.1}),
    ("sampling.frequency_penalty", {"frequency_penalty": -2.1}),
    ("sampling.seed", {"seed": 1 << 64}),
    ("sampling.seed", {"seed": -1}),
    ("sampling.logprobs", {"num_logprobs": 21}),
]
BAD_INFERS = [
    ("max_tokens", InferArgs("c", max_tokens=-1)),
    ("deadline_s", InferArgs("c", deadline_s=-1.0)),
    ("deadline_s", InferArgs("c", deadline_s=math.inf)),
    ("max_queue_s", InferArgs("c", max_queue_s=-1.0)),
    ("max_queue_s", InferArgs("c", max_queue_s=math.nan)),
    ("detach_grace_s", InferArgs("c", detach_grace_s=-1.0)),
    ("sampling.stop", InferArgs("c", stop=("a", "b", "c"))),
    ("sampling.stop", InferArgs("c", stop=("",))),
    ("sampling.stop", InferArgs("c", stop=("12345",))),
    ("sampling.stop", InferArgs("c", stop=("ééé",))),
    ("sampling.stop_token_ids", InferArgs("c", sampling=Sampling(stop_token_ids=(1, 2, 3)))),
    ("sampling.temperature", InferArgs("c", sampling=Sampling(temperature=-1.0))),
    ("input.text", InferArgs("c", TextInput(""))),
    ("input.text", InferArgs("c", TextInput("x" * 11))),
    ("input.text", InferArgs("c", TextInput("\ud800"))),
    ("input.tokens", InferArgs("c", TokenInput(()))),
    ("input.messages", InferArgs("c", ChatInput(()))),
    ("input.messages", InferArgs("c", ChatInput((("u", "1"), ("u", "2"), ("u", "3"))))),
    ("input.messages", InferArgs("c", ChatInput((("", "hello"),)))),
    ("input.messages", InferArgs("c", ChatInput((("user", "1234567"),)))),
]
GOOD_INPUTS = [None, TextInput("x" * 10), TokenInput((1,)), ChatInput((("user", "123456"),)), ChatInput((("u", ""), ("v", "x")))]


@pytest.mark.parametrize("numbers", GOOD_SAMPLING)
def test_sampling_at_its_bounds_is_taken(numbers: dict[str, float]) -> None:
    check_sampling(msgspec.structs.replace(Sampling(), **numbers))


@pytest.mark.parametrize(("field", "numbers"), BAD_SAMPLING)
def test_sampling_past_its_bounds_is_refused_by_name(field: str, numbers: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_sampling(msgspec.structs.replace(Sampling(), **numbers))

    assert caught.value.field == field


@pytest.mark.parametrize(("field", "args"), BAD_INFERS)
def test_an_infer_past_its_bounds_is_refused_by_name(field: str, args: InferArgs) -> None:
    with pytest.raises(InvalidArgument) as caught:
        BOUNDS.check_infer(args)

    assert caught.value.field == field
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("given", GOOD_INPUTS)
def test_an_infer_at_its_bounds_is_taken(given: InferInput) -> None:
    BOUNDS.check_infer(InferArgs("c", given, stop=("1234", "x"), deadline_s=1.0, detach_grace_s=0.0))


@pytest.mark.parametrize("labels", [{"a": "1", "b": "2", "c": "3"}, {"": "x"}, {"12345": "x"}, {"x": "12345"}])
def test_labels_past_their_bounds_are_refused(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        BOUNDS.check_labels(labels)

    assert caught.value.field == "labels"


def test_labels_at_their_bounds_are_taken() -> None:
    BOUNDS.check_labels({"1234": "1234", "x": ""})


@pytest.mark.parametrize("nice", [-21, 20])
def test_niceness_is_bounded(nice: int) -> None:
    check_nice(-20)
    check_nice(19)
    with pytest.raises(InvalidArgument):
        check_nice(nice)


def test_seeds_have_64_bits() -> None:
    check_seed(None)
    check_seed(0)
    with pytest.raises(InvalidArgument):
        check_seed(1 << 64)


def test_a_fork_is_not_at_a_negative_offset() -> None:
    check_fork(ForkArgs("c"))
    check_fork(ForkArgs("c", at=0))
    with pytest.raises(InvalidArgument):
        check_fork(ForkArgs("c", at=-1))


@pytest.mark.parametrize("tokens", [(0, 10), (-1,)])
def test_tokens_that_the_model_has_not_are_named(tokens: tuple[int, ...]) -> None:
    check_tokens("input.tokens", (0, 9), 10)
    with pytest.raises(InvalidArgument, match="vocabulary of 10"):
        check_tokens("input.tokens", tokens, 10)
