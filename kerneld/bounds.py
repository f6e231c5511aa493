"""Bounds: which numbers and texts a call may hold, whatever the state of the daemon is.

Each check raises InvalidArgument with the field as the caller knows it and one sentence, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from drivers.contract import Sampling
from kerneld.calls import ChatInput, ForkArgs, InferArgs, InferInput, TextInput, TokenInput
from kerneld.config import KerneldConfig
from kerneld.errors import InvalidArgument

MIN_NICE, MAX_NICE = -20, 19
MAX_LOGPROBS = 20
MAX_DRAFT_TOKENS = 16
MAX_TEMPERATURE = 100.0
MAX_TOP_K = 1 << 20
MAX_REPETITION_PENALTY = 10.0
MAX_PENALTY = 2.0  # presence and frequency, either sign
MAX_SECONDS = 7 * 24 * 3600.0  # of a deadline or a grace
MAX_U64 = (1 << 64) - 1


class Bounds:
    """The checks, with the limits that are configured."""

    def __init__(self, config: KerneldConfig) -> None:
        self._config = config

    def check_infer(self, args: InferArgs) -> None:
        """Everything of an infer that can be judged without its model. Raises: InvalidArgument."""
        self.check_input(args.input)
        check_sampling(args.sampling)
        self._check_stops(args.stop, args.sampling.stop_token_ids)
        _check_whole("max_tokens", args.max_tokens, 0, MAX_U64)
        _check_number("deadline_s", args.deadline_s, 0.0, MAX_SECONDS)
        if args.detach_grace_s is not None:
            _check_number("detach_grace_s", args.detach_grace_s, 0.0, MAX_SECONDS)
        _check_number("max_queue_s", args.max_queue_s, 0.0, MAX_SECONDS)

    def check_input(self, given: InferInput) -> None:
        """Size and form of an input. Raises: InvalidArgument."""
        if isinstance(given, TextInput):
            self._check_text("input.text", _size_of("input.text", given.text))
        if isinstance(given, ChatInput):
            self._check_messages(given.messages)
        if isinstance(given, TokenInput) and not given.tokens:
            raise InvalidArgument("input.tokens", "is empty; leave the input out to continue the context.")

    def check_labels(self, labels: Mapping[str, str]) -> None:
        """Number and size of labels. Raises: InvalidArgument."""
        if len(labels) > self._config.max_labels:
            raise InvalidArgument("labels", f"{len(labels)} are more than {self._config.max_labels}.")
        for key, value in labels.items():
            if not key:
                raise InvalidArgument("labels", "a label needs a key.")
            for text in (key, value):
                size = _size_of("labels", text)
                if size > self._config.max_label_bytes:
                    raise InvalidArgument("labels", f"{key[:32]!r} has {size} bytes, more than {self._config.max_label_bytes}.")

    def _check_messages(self, messages: tuple[tuple[str, str], ...]) -> None:
        if not messages:
            raise InvalidArgument("input.messages", "is empty; leave the input out to continue the context.")
        if len(messages) > self._config.max_messages:
            raise InvalidArgument("input.messages", f"{len(messages)} are more than {self._config.max_messages}.")
        if not all(role for role, _ in messages):
            raise InvalidArgument("input.messages", "every message needs a role.")
        size = sum(_size_of("input.messages", role) + _size_of("input.messages", content) for role, content in messages)
        self._check_text("input.messages", size)

    def _check_text(self, field: str, size_bytes: int) -> None:
        if not size_bytes:
            raise InvalidArgument(field, "is empty; leave the input out to continue the context.")
        if size_bytes > self._config.max_text_bytes:
            raise InvalidArgument(field, f"has {size_bytes} bytes, more than {self._config.max_text_bytes}.")

    def _check_stops(self, stops: tuple[str, ...], stop_token_ids: tuple[int, ...]) -> None:
        limit = self._config.max_stop_strings
        if len(stops) > limit:
            raise InvalidArgument("sampling.stop", f"{len(stops)} are more than {limit}.")
        if len(stop_token_ids) > limit:
            raise InvalidArgument("sampling.stop_token_ids", f"{len(stop_token_ids)} are more than {limit}.")
        for stop in stops:
            size = _size_of("sampling.stop", stop)
            if not 1 <= size <= self._config.max_stop_bytes:
                raise InvalidArgument("sampling.stop", f"one has {size} bytes; use 1 to {self._config.max_stop_bytes}.")


def check_sampling(sampling: Sampling) -> None:
    """The numbers of sampling. Raises: InvalidArgument."""
    _check_number("sampling.temperature", sampling.temperature, 0.0, MAX_TEMPERATURE)
    _check_whole("sampling.top_k", sampling.top_k, 0, MAX_TOP_K)
    _check_number("sampling.top_p", sampling.top_p, 0.0, 1.0, is_open=True)
    _check_number("sampling.min_p", sampling.min_p, 0.0, 1.0)
    _check_number("sampling.repetition_penalty", sampling.repetition_penalty, 0.0, MAX_REPETITION_PENALTY, is_open=True)
    _check_number("sampling.presence_penalty", sampling.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_number("sampling.frequency_penalty", sampling.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_whole("sampling.seed", sampling.seed, 0, MAX_U64)
    _check_whole("sampling.logprobs", sampling.num_logprobs, -1, MAX_LOGPROBS)
    _check_whole("sampling.draft_tokens", sampling.draft_tokens, 0, MAX_DRAFT_TOKENS)


def check_nice(nice: int) -> None:
    """The order within one person. Raises: InvalidArgument."""
    _check_whole("nice", nice, MIN_NICE, MAX_NICE)


def check_seed(seed: int | None) -> None:
    """A context's seed, if one is given. Raises: InvalidArgument."""
    if seed is not None:
        _check_whole("seed", seed, 0, MAX_U64)


def check_fork(args: ForkArgs) -> None:
    """The numbers of a fork. Raises: InvalidArgument."""
    check_seed(args.seed)
    if args.at is not None:
        _check_whole("at", args.at, 0, MAX_U64)


def check_tokens(field: str, tokens: Iterable[int], vocab_size: int) -> None:
    """Token ids must be ones that the model has. Raises: InvalidArgument, naming the first that is not."""
    for i, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise InvalidArgument(field, f"token {token} at index {i} is not in the model's vocabulary of {vocab_size}.")


def _check_number(field: str, value: float, low: float, high: float, is_open: bool = False) -> None:
    """A finite number in [low, high], or in (low, high] if `is_open`."""
    is_inside = math.isfinite(value) and low <= value <= high and not (is_open and value == low)
    if not is_inside:
        raise InvalidArgument(
            field, f"{value:g} is not {'above' if is_open else 'between'} {low:g} and {'at most ' if is_open else ''}{high:g}."
        )


def _check_whole(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgument(field, f"{value} is not between {low} and {high}.")


def _size_of(field: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(field, f"has half of a surrogate pair at index {error.start}.") from error
