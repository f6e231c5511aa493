"""The attention that modules of `transformers` call in our place: who computes it is whoever runs them at the moment, in this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "kerneld"

# (module, (queries [1, H, T, D], keys and values [1, J, T, D]), mask, whatever else the module says) -> mixed values [1, T, H, D]
Attend = Callable[[nn.Module, tuple[Tensor, Tensor, Tensor], Tensor | None, Mapping[str, object]], Tensor]
_attend: ContextVar[Attend] = ContextVar("attend")


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Modules that run in this thread have their attention computed by `attend`."""
    before = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(before)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **said: object
) -> tuple[Tensor, None]:
    return _attend.get()(module, (query, key, value), attention_mask, said), None


AttentionInterface.register(NAME, _attention)
