"""Rotary position embedding and its scalings, fixed once per loaded model.

    default   angle = position / theta^(2i/d)
    linear    every frequency divided by `factor`
    dynamic   theta grows with the length. Other engines recompute it as a sequence grows, which changes keys that are in the cache
              already; here the length is the declared maximum of the model (`InspectSpec.max_positions`), the same for every context.
              A declared maximum within the original length means no scaling at all, and equals `transformers` there.
    llama3    low frequencies divided by `factor`, high ones kept, smooth between; does not depend on the length
    yarn      the same idea by number of rotations, and cos and sin scaled by `attention_factor`; does not depend on the length
    longrope  every frequency divided by a factor of its own, from one of two lists: for lengths up to the original one, or beyond it. Other
              engines change the list as a sequence grows; here the declared maximum decides, as above. cos and sin scaled as with yarn

`partial_rotary_factor` turns the first dimensions of each head only.

Source: the formulas of `transformers.modeling_rope_utils`; tests compare against it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drivers.errors import ModelUnsupported
from drivers.models.fields import Fields

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
OLD_NAMES = {"su": "longrope"}
DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """A rotary embedding as the model's config declares it; fields that a type does not use keep their defaults."""

    rope_type: str = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    is_truncated: bool = True
    fraction: float = 1.0  # of the dimensions of a head
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @classmethod
    def read(cls, config: Fields, positions: int, theta: float = DEFAULT_THETA, has_partial: bool = False) -> RopeConfig:
        """Read either spelling: `rope_theta` with `rope_scaling`, or `rope_parameters`. `theta` is what is meant where neither says.

        Raises: ModelUnsupported, ModelCorrupt.
        """
        name = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
        fields = config.inner(name) or Fields({}, config.origin)
        theta = fields.number("rope_theta", config.number("rope_theta", theta, low=1.0), low=1.0)
        return replace(cls.read_type(config, fields, (theta, positions)), fraction=_fraction(config, fields, has_partial))

    @classmethod
    def read_type(cls, config: Fields, fields: Fields, base: tuple[float, int]) -> RopeConfig:
        """Read one object of rotary settings; `base` is theta and the positions that the model was made for."""
        theta, positions = base
        rope_type = fields.text("rope_type", fields.text("type", "default"))
        rope_type = OLD_NAMES.get(rope_type, rope_type)
        if rope_type not in ROPE_TYPES:
            raise fields.unsupported("rope_type" if fields.has("rope_type") else "type", " or ".join(ROPE_TYPES))
        if rope_type == "default":
            return cls(theta=theta)
        original = positions
        if rope_type in ("llama3", "yarn", "longrope"):
            original = fields.integer("original_max_position_embeddings", positions)
            original = config.integer("original_max_position_embeddings", original)
        if rope_type == "longrope":
            return cls._read_longrope(fields, theta, (positions, original))
        return cls._read_scaled(fields, rope_type, (theta, original))

    @classmethod
    def _read_longrope(cls, fields: Fields, theta: float, lengths: tuple[int, int]) -> RopeConfig:
        positions, original = lengths
        factor = fields.number("factor", positions / original)
        implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 and original > 1 else 1.0
        return cls(
            rope_type="longrope",
            theta=theta,
            factor=factor,
            original_positions=original,
            attention_factor=fields.number("attention_factor", implied),
            short_factors=fields.numbers("short_factor"),
            long_factors=fields.numbers("long_factor"),
        )

    @classmethod
    def _read_scaled(cls, fields: Fields, rope_type: str, base: tuple[float, int]) -> RopeConfig:
        theta, original = base
        factor = fields.number("factor", low=1.0)
        return cls(
            rope_type=rope_type,
            theta=theta,
            factor=factor,
            original_positions=original,
            low_freq_factor=fields.number("low_freq_factor", None if rope_type == "llama3" else 1.0),
            high_freq_factor=fields.number("high_freq_factor", None if rope_type == "llama3" else 4.0),
            beta_fast=fields.number("beta_fast", 32.0) or 32.0,
            beta_slow=fields.number("beta_slow", 1.0) or 1.0,
            attention_factor=_attention_factor(fields, factor) if rope_type == "yarn" else 1.0,
            is_truncated=fields.flag("truncate", True),
        )

    def num_dims(self, head_dim: int) -> int:
        """How many dimensions of a head are turned."""
        return int(head_dim * self.fraction)

    def longest(self, positions: int) -> int:
        """The most positions that may be declared, where the config says `positions`."""
        if self.rope_type in ("dynamic", "yarn"):
            return max(positions, int(self.original_positions * self.factor))
        return positions

    def name(self, max_positions: int) -> str:
        """Everything about it that changes the bits of a page."""
        part = f"-of-{self.fraction:.9g}" if self.fraction != 1.0 else ""
        if self.rope_type == "default":
            return f"rope-{self.theta:g}{part}"
        facts: list[str | float] = [self.rope_type, self.theta, self.factor, self.original_positions]
        if self.rope_type == "dynamic":
            facts.append(max_positions)
        if self.rope_type == "llama3":
            facts += [self.low_freq_factor, self.high_freq_factor]
        if self.rope_type == "yarn":
            facts += [self.beta_fast, self.beta_slow, self.attention_factor, int(self.is_truncated)]
        if self.rope_type == "longrope":
            factors = self.factors(max_positions)
            facts += [self.attention_factor, hashlib.sha256(repr(factors).encode()).hexdigest()[:12]]
        return "rope-" + "-".join(fact if isinstance(fact, str) else f"{fact:.9g}" for fact in facts) + part

    def factors(self, max_positions: int) -> tuple[float, ...]:
        """What longrope divides each frequency by."""
        return self.long_factors if max_positions > self.original_positions else self.short_factors


def _fraction(config: Fields, fields: Fields, has_partial: bool) -> float:
    fraction = 1.0
    for place in (config, fields):
        fraction = place.number("partial_rotary_factor", fraction)
        if fraction != 1.0 and not (has_partial and 0.0 < fraction < 1.0):
            raise place.unsupported("partial_rotary_factor", "a part of 1.0" if has_partial else "1.0")
    return fraction


def _attention_factor(fields: Fields, factor: float) -> float:
    if fields.has("attention_factor"):
        return fields.number("attention_factor")
    scale, scale_all = fields.number("mscale", 0.0), fields.number("mscale_all_dim", 0.0)
    if scale and scale_all:
        return _magnitude(factor, scale) / _magnitude(factor, scale_all)
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def inverse_frequencies(rope: RopeConfig, head_dim: int, max_positions: int) -> Tensor:
    """Angles per position, `[num_dims / 2] f32`, for a model whose declared maximum is `max_positions`. Raises: ModelUnsupported."""
    theta, head_dim = rope.theta, rope.num_dims(head_dim)
    if rope.rope_type == "dynamic":
        length = max(max_positions, rope.original_positions)
        theta *= ((rope.factor * length / rope.original_positions) - (rope.factor - 1)) ** (head_dim / (head_dim - 2))
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(rope, plain)
    if rope.rope_type == "yarn":
        return _yarn(rope, head_dim)
    if rope.rope_type == "longrope":
        return _longrope(rope, head_dim, max_positions)
    return plain


def _longrope(rope: RopeConfig, head_dim: int, max_positions: int) -> Tensor:
    factors = torch.tensor(rope.factors(max_positions))
    return 1.0 / (factors * rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise ModelUnsupported("high_freq_factor has to be greater than low_freq_factor in the llama3 rotary scaling.")
    wavelengths = 2 * math.pi / plain
    smooth = (rope.original_positions / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    slow = wavelengths > rope.original_positions / rope.low_freq_factor
    fast = wavelengths < rope.original_positions / rope.high_freq_factor
    return torch.where(slow, plain / rope.factor, torch.where(fast, plain, blended))


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    def turning_dim(rotations: float) -> float:
        return head_dim * math.log(rope.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = turning_dim(rope.beta_fast), turning_dim(rope.beta_slow)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    powers = rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return (1.0 / (rope.factor * powers)) * ramp + (1.0 / powers) * (1 - ramp)
