"""How a token is drawn from logits: the definition, and what a faster draw shares with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cuts:
    """How each row of a batch of logits narrows what may be drawn; see `drivers.contract.Sampling`."""

    temperature: Tensor  # [rows] f32, > 0
    top_k: Tensor  # [rows] int64, 0: off
    top_p: Tensor  # [rows] f64
    min_p: Tensor  # [rows] f32


def sample(logits: Tensor, cuts: Cuts, uniforms: Tensor) -> Tensor:
    """Draws one token per row of `logits [rows, vocab] f32`, penalties applied, with `uniforms [rows] f64` in [0, 1).

    Tokens are ranked by logit, ties by id. Kept are: the first `top_k`; of those the shortest prefix with at least `top_p` of their mass;
    of those the ones with at least `min_p` of the likeliest's probability. The draw inverts the cumulated probability over the kept
    tokens in the order of their ids.
    """
    drawn = []
    for row in range(logits.shape[0]):
        scaled = logits[row] / cuts.temperature[row]
        order = torch.argsort(scaled, descending=True, stable=True)
        top_k = int(cuts.top_k[row])
        if top_k > 0:
            order = order[:top_k]
        mass = scaled[order].double().softmax(-1)
        before = mass.cumsum(-1) - mass
        kept = (before < cuts.top_p[row]) & (mass >= cuts.min_p[row] * mass[0])
        kept[0] = True
        ids = order[kept].sort().values
        drawn.append(int(ids[invert(scaled[ids].double().softmax(-1), uniforms[row])]))
    return torch.tensor(drawn, dtype=torch.int64)


def invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """The first index whose cumulated `mass [..., n]` exceeds `uniforms [...]` of the total; never one without mass."""
    summed = mass.double().cumsum(-1)
    total = summed[..., -1:]
    idx = (summed <= uniforms.unsqueeze(-1) * total).sum(-1)
    last = (summed < total).sum(-1)  # the first index that reaches the total: rounding must not step past it
    return torch.minimum(idx, last)
