"""A decoder as calls of named ops, made of its config alone (the form: `drivers.ops.calls`).

Parts are those of `drivers.models.layout`: a call of the first list names parts of the segment "embedding", one of a layer's list those of
that layer, one of the last list those of "end", but for a tied head, which is the part `embedding` of the first segment. What each family
computes is in `drivers.models.families`.
"""

from __future__ import annotations

from drivers.models.config import DecoderConfig
from drivers.models.families.table import write_down
from drivers.ops.calls import Description


def describe(config: DecoderConfig) -> Description:
    """What the model computes, from tokens and positions to logits."""
    first, *layers, last = [tuple(sheet.calls) for sheet in write_down(config)]
    return Description(first, tuple(layers), last)
