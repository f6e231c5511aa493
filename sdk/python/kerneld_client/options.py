"""What the verbs with many parameters take, by keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict


class AllocOptions(TypedDict, total=False):
    """What `alloc` takes beside the model."""

    max_tokens: int  # of the context; 0: the model's limit
    priority: str  # "interactive", "batch", "idle"
    nice: int  # -20 .. 19, among one person's own
    durability: str  # "journal", "fsync", "none"
    labels: Mapping[str, str]
    seed: int
    adapter: str  # of the model; an adapter's own name as the model does the same
    sharing_group: str  # one of `sharing_groups`; default: one's own tenant
    request_id: str


class ForkOptions(TypedDict, total=False):
    """What `fork` takes."""

    at: int  # offset; default: everything that is journaled
    labels: Mapping[str, str]
    seed: int
    request_id: str


class SetOptions(TypedDict, total=False):
    """What `set` takes; what is left out stays."""

    nice: int
    priority: str
    labels: Mapping[str, str]  # merged; an empty value removes a label
    max_tokens: int
    pinned: bool  # whether the pages of the tokens that it has now go last of all that its tenant has
    request_id: str


class SamplingOptions(TypedDict, total=False):
    """How to draw."""

    temperature: float  # 0: greedy
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int  # default: the context's
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int  # 0: of the chosen tokens; n: and of the n likeliest
    draft_tokens: int  # guessed ahead and verified in one step, at most 16; the output stays the same
    draft_model: str  # a loaded model that guesses; default: what followed before in the context itself


class InferOptions(SamplingOptions, total=False):
    """What `infer` takes beside text."""

    tokens: Sequence[int]
    messages: Sequence[Mapping[str, str]]  # {"role": ..., "content": ...}
    max_tokens: int  # of the answer; default 256
    deadline_s: float
    detach_grace_s: float
    max_queue_s: float  # that it may wait for its first turn; default: as long as the deadline lets it
    request_id: str
