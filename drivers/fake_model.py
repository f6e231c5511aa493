"""The language that the fake driver speaks: what it computes, as pure functions that a test can check it against.

Every token of a row has a *link*: a 64-bit mix of the link before it, the token and its position. The next token is a function of the last
link, so it depends on every token before it. The links are the fake's KV: they lie in the frames, and a row whose frames hold anything but
its own history is found out.

    root --mix(t0, 0)--> link0 --mix(t1, 1)--> link1 --...--> link n-1 --draw--> t n
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import psutil

from drivers.contract import Capabilities, InspectSpec, KvGroupSpec, ModelSpec, OpenSpec, Sampling, SegmentSpec, TokenLogprob
from drivers.errors import ModelCorrupt, ModelUnsupported

FIRST_TOKEN = 3  # 0, 1 and 2 are never drawn: padding, beginning, end
BOS_TOKEN = 1
SHRINKS = {"": 1, "int8": 4, "int4": 8}  # by how much weights get smaller
KV_QUANTIZATIONS = ("int8",)
EOS_TOKEN = 2

_MASK = (1 << 64) - 1
Words = TypeVar("Words", int, np.ndarray)
S = TypeVar("S", bound=msgspec.Struct)


class FakeModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `fake.json` in a model directory; without that file, these defaults."""

    vocab_size: int = 4096
    num_layers: int = 4
    kv_bytes_per_token: int = 64  # all groups together
    weights_bytes: int = 65536
    max_positions: int = 1024
    windows: tuple[int | None, ...] = (None,)  # one KV group each
    seed: int = 0  # two models that differ in nothing else speak differently

    @classmethod
    def read(cls, directory: Path) -> FakeModel:
        """Raises: ModelCorrupt, if the directory or its JSON is broken; ModelUnsupported, naming the field."""
        model = _read(directory, cls)
        model.check()
        return model

    def check(self) -> None:
        """Raises: ModelUnsupported."""
        if self.vocab_size <= FIRST_TOKEN or min(self.num_layers, self.max_positions, self.weights_bytes) < 1 or not self.windows:
            raise ModelUnsupported(
                f"fake.json: vocab_size is {FIRST_TOKEN + 1} or more, every other size 1 or more, and windows not empty."
            )
        if any(window is not None and window < 2 for window in self.windows):
            raise ModelUnsupported("fake.json: a window is null or 2 or more.")
        if self.kv_bytes_per_token % (16 * len(self.windows)):
            raise ModelUnsupported(f"fake.json: kv_bytes_per_token is {self.kv_bytes_per_token}, not a multiple of 16 for each group.")

    @property
    def root(self) -> int:
        """The link before the first token."""
        return int.from_bytes(blake2b(msgspec.json.encode(self), digest_size=8).digest(), "little")


class FakeAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `fake.json` in an adapter's directory; without that file, these defaults."""

    weights_bytes: int = 8192
    num_layers: int = 4  # of the base that it was made for
    seed: int = 0  # two adapters that differ in nothing else speak differently

    @classmethod
    def read(cls, directory: Path) -> FakeAdapter:
        """Raises: ModelCorrupt, if the directory or its JSON is broken; ModelUnsupported, naming the field."""
        adapter = _read(directory, cls)
        if adapter.weights_bytes < 1:
            raise ModelUnsupported("fake.json: weights_bytes is 1 or more.")
        return adapter

    @property
    def root(self) -> int:
        """By how much it moves the link before the first token."""
        return int.from_bytes(blake2b(b"adapter" + msgspec.json.encode(self), digest_size=8).digest(), "little")


def describe_adapter(adapter: FakeAdapter, base: FakeModel, memory: OpenSpec, spec: InspectSpec) -> ModelSpec:
    """Return what an adapter of a model needs of a device. Raises: ModelCorrupt, if it was made for another base."""
    if adapter.num_layers != base.num_layers:
        raise ModelCorrupt(
            f"The adapter is for {adapter.num_layers} layers, and the base has {base.num_layers}. It was made for another base."
        )
    return msgspec.structs.replace(
        describe(base, memory, spec),
        architecture="LoRA of FakeForCausalLM",
        num_parameters=adapter.weights_bytes // 4,
        segments=(SegmentSpec("adapter", adapter.weights_bytes),),
        groups=(),
        numerics=f"fake adapter {adapter.root:016x}",
    )


def capabilities() -> Capabilities:
    """What the driver states."""
    return Capabilities(
        driver="fake",
        version="1",
        device_name="fake",
        memory_bytes=psutil.virtual_memory().total,
        dtypes=("float32",),
        quantizations=tuple(filter(None, SHRINKS)),
        kv_quantizations=KV_QUANTIZATIONS,
        batch_invariant=True,
        gives_back=True,
        drafts=True,
    )


def describe(model: FakeModel, memory: OpenSpec, spec: InspectSpec) -> ModelSpec:
    """Return what a model needs of a device that was opened with `memory`. Quantized weights are smaller, and say the same.

    Raises: ModelUnsupported, if it is to be quantized in a way that is not stated.
    """
    if spec.quant not in SHRINKS or spec.kv_quant not in ("", *KV_QUANTIZATIONS):
        raise ModelUnsupported(
            f"quant is {spec.quant!r} and kv_quant {spec.kv_quant!r}; the fake driver plays "
            f"{', '.join(filter(None, SHRINKS))} and {', '.join(KV_QUANTIZATIONS)}."
        )
    segment_bytes = -(-model.weights_bytes // (model.num_layers * SHRINKS[spec.quant]))
    page_bytes = memory.page_tokens * model.kv_bytes_per_token // len(model.windows)
    frame_bytes = -(-page_bytes // memory.granule_bytes) * memory.granule_bytes
    return ModelSpec(
        architecture="FakeForCausalLM",
        dtype=memory.dtype,
        vocab_size=model.vocab_size,
        max_positions=min(model.max_positions, spec.max_positions or model.max_positions),
        num_parameters=model.weights_bytes // 4,
        segments=tuple(SegmentSpec(f"layer{idx}", segment_bytes) for idx in range(model.num_layers)),
        groups=tuple(KvGroupSpec(model.num_layers, frame_bytes, window) for window in model.windows),
        bos_token_id=BOS_TOKEN,
        eos_token_ids=(EOS_TOKEN,),
        numerics=f"fake {model.root:016x}{spec.quant and f' {spec.quant}'}{spec.kv_quant and f' kv {spec.kv_quant}'}",
        quant=spec.quant,
        kv_quant=spec.kv_quant,
    )


def mix(link: Words, token: Words, position: Words) -> Words:
    """Return the link after `token` at `position`; on ints and on uint64 arrays alike."""
    word = link ^ (token * 0x9E3779B97F4A7C15 + position * 0xC2B2AE3D27D4EB4F & _MASK)
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _MASK  # the finalizer of splitmix64
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _MASK
    mixed: Words = word ^ word >> 31
    return mixed


def links_after(link: int, tokens: Sequence[int], position: int) -> list[int]:
    """Return the link after each of `tokens`, the first of which is at `position`."""
    links: list[int] = []
    for idx, token in enumerate(tokens):
        link = mix(link, token, position + idx)
        links.append(link)
    return links


def draw(model: FakeModel, link: int, position: int, sampling: Sampling) -> int:
    """Return the token at `position`, given the link before it: the likeliest one, or a draw by (seed, position)."""
    word = link if sampling.temperature == 0.0 else mix(link, sampling.seed, position)
    return FIRST_TOKEN + word % (model.vocab_size - FIRST_TOKEN)


def logprob(model: FakeModel, link: int, token: int, num_top: int) -> TokenLogprob:
    """Return how likely `token` is after `link`, and the likeliest ones. Likelihood falls around the circle from the likeliest token on."""
    span = model.vocab_size - FIRST_TOKEN
    likeliest = link % span
    rank = (token - FIRST_TOKEN - likeliest) % span if token >= FIRST_TOKEN else span + token
    top = tuple((FIRST_TOKEN + (likeliest + idx) % span, _logprob_of(idx)) for idx in range(min(num_top, span)))
    return TokenLogprob(_logprob_of(rank), top)


def continuation(
    model: FakeModel, tokens: Sequence[int], num_tokens: int, sampling: Sampling, adapter: FakeAdapter | None = None
) -> list[int]:
    """Return the `num_tokens` tokens that a row with this history goes on with: what every path through the driver must give."""
    link = links_after(model.root ^ (adapter.root if adapter else 0), tokens, 0)[-1]
    drawn: list[int] = []
    for position in range(len(tokens), len(tokens) + num_tokens):
        drawn.append(draw(model, link, position, sampling))
        link = mix(link, drawn[-1], position)
    return drawn


def _logprob_of(rank: int) -> float:
    return -0.5 - 0.01 * rank


def _read(directory: Path, kind: type[S]) -> S:
    if not directory.is_dir():
        raise ModelCorrupt(f"{directory} is not a directory.")
    file = directory / "fake.json"
    if not file.exists():
        return kind()
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except msgspec.ValidationError as error:
        raise ModelUnsupported(f"fake.json: {error}.") from error
    except (msgspec.DecodeError, OSError) as error:
        raise ModelCorrupt(f"fake.json: {error}.") from error
