"""The op `experts`: its definition, and a faster implementation that computes each expert once for all tokens that chose it.

    shares = softmax(x R^T) [T, E]; the top k of a token, ties to the lower expert; divided by their sum where that is asked for
    y = sum over the chosen experts, in the order of their numbers, of share * down(f(gate(x)) * up(x))

No expert has a capacity: what a token gets depends on no other token. Shares are computed in f32, and so is the sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.ops.calls import ExpertSettings
from drivers.ops.reference import act_mul

Matrix = Callable[[int], Tensor]  # of an expert by number


def route(x: Tensor, router: Tensor, settings: ExpertSettings) -> Tensor:
    """How much each expert has of each token, `[T, E] f32`: 0 of those that are not run."""
    likely = F.linear(x, router).float().softmax(-1)
    order = likely.argsort(dim=-1, descending=True, stable=True)[:, : settings.top_k]
    shares = torch.zeros_like(likely).scatter_(-1, order, likely.gather(-1, order))
    return shares / shares.sum(-1, keepdim=True) if settings.is_normalized else shares


def experts(x: Tensor, router: Tensor, gate_up: Matrix, down: Matrix, settings: ExpertSettings) -> Tensor:
    """The definition, token by token: `x [T, hidden]`, `router [E, hidden]`, of each expert `[2 * inner, hidden]` and `[hidden, inner]`."""
    shares = route(x, router, settings)
    answer = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for token in range(x.shape[0]):
        for expert in shares[token].nonzero().flatten().tolist():
            inner = act_mul(F.linear(x[token], gate_up(expert)), settings.function)
            answer[token] += F.linear(inner, down(expert)).float() * shares[token, expert]
    return answer.to(x.dtype)


def grouped_experts(x: Tensor, router: Tensor, gate_up: Matrix, down: Matrix, settings: ExpertSettings) -> Tensor:
    """The same, expert by expert."""
    shares = route(x, router, settings)
    answer = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in shares.any(0).nonzero().flatten().tolist():
        tokens = shares[:, expert].nonzero().flatten()
        inner = act_mul(F.linear(x[tokens], gate_up(expert)), settings.function)
        answer[tokens] += F.linear(inner, down(expert)).float() * shares[tokens, expert].unsqueeze(-1)
    return answer.to(x.dtype)
