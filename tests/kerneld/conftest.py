"""Contexts and requests for tests, a tokenizer trained on the spot, and a clock that stands still until told."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from drivers.contract import Sampling
from kerneld.calls import InferArgs, Priority
from kerneld.context import Context
from kerneld.request import Request
from kerneld.stream import OutputLog
from kerneld.tokenizer import Tokenizer
from kerneld.transcript import Transcript

TRAINING_TEXT = ["def hello(self):\n    return 'world'\n", "Grüße aus Köln, 価格は三円です 😀👩‍👩‍👧 naïve café"] * 3


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """A factory of requests of a new context each: `num_input` tokens in, `max_tokens` out at most."""
    serial = itertools.count(1)

    def make(
        tenant: str = "lab",
        *,
        num_input: int = 10,
        max_tokens: int = 100,
        arrival: float | None = None,
        model: str = "m",
        nice: int = 0,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
    ) -> Request:
        number = next(serial)
        context = Context(id=f"{number:032x}", owner="ann", tenant=tenant, model=model, fingerprint="f", seed=1, created_at=0.0)
        context.nice, context.priority = nice, priority
        context.tokens.extend(range(num_input))
        request = new_request(context, f"{number + (1 << 64):032x}", max_tokens, float(number) if arrival is None else arrival)
        request.deadline = deadline
        return request

    return make


def new_request(context: Context, request_id: str, max_tokens: int = 100, arrival: float = 0.0) -> Request:
    """A request whose input is all that its context has."""
    log = OutputLog(context.num_tokens, lambda: 0.0)
    return Request(
        id=request_id,
        context=context,
        args=InferArgs(context_id=context.id),
        sampling=Sampling(),
        num_input=context.num_tokens,
        output_start=context.num_tokens,
        max_tokens=max_tokens,
        arrival=arrival,
        log=log,
        transcript=Transcript(log, None),
    )


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of 300 tokens, two of them special: <bos> 0, <eos> 1."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<bos>", "<eos>"],
        show_progress=False,
    )
    inner.train_from_iterator(TRAINING_TEXT, trainer)
    return Tokenizer(inner)
