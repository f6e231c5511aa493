"""Forward passes of whole models on the native engine: what they compute, and that nothing but a token's own inputs decides its bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from drivers.models.storage import Kind, Storage
from drivers.native.engine import Engine, StepInvalid
from drivers.native.isa import levels
from drivers.native.lora import record_of
from drivers.native.program import PLACES
from drivers.native.step import NativeLora, NativeStep
from tests.drivers.native.engine_rig import BFLOAT16, FLOAT32, INT4, INT8, MODELS, P, Rig

FORMS: dict[str, tuple[Storage, Kind]] = {
    "float32": (FLOAT32, Kind.FLOAT32),
    "bfloat16": (BFLOAT16, Kind.BFLOAT16),
    "int8": (INT8, Kind.INT8),
    "int4": (INT4, Kind.BFLOAT16),
    "float8": (BFLOAT16, Kind.FLOAT8),
}
# Of the greatest number: bfloat16 rounds inputs to 8 bits, int8 to 7 and a sign, float8 keys and values to 4. Gemma's caps and norms behind
# blocks make errors larger.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.04, "int8": 0.12, "int4": 0.12, "float8": 0.2}
LENGTH = 70  # tokens: more than four pages, and more than the window of those that have one
EVERYTHING = [(model, form) for model in MODELS for form in FORMS if form == "float32" or model not in ("experts", "odd")]


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    """Rigs to be closed."""
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.close()


def opened(rigs: list[Rig], model: str = "llama", form: str = "float32", **settings: object) -> Rig:
    storage, kv_kind = FORMS[form]
    rig = Rig(MODELS[model], storage, kv_kind, **settings)  # type: ignore[arg-type]
    rigs.append(rig)
    return rig


def difference(found: Tensor, expected: Tensor) -> float:
    """Of the greatest number."""
    return float((found - expected).abs().max() / expected.abs().max())


@cache
def computed_alone(model: str, form: str) -> Tensor:
    """Hidden states of a context that is computed whole, by one thread."""
    rig = Rig(MODELS[model], *FORMS[form], num_threads=1)
    hidden = rig.alone(LENGTH, seed=3)
    rig.close()
    return hidden


# ------------------------------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize(("model", "form"), EVERYTHING)
def test_a_model_computes_what_its_calls_mean(rigs: list[Rig], model: str, form: str) -> None:
    rig = opened(rigs, model, form)
    context = rig.start(LENGTH, seed=3)
    hidden, logits = rig.defined(context.tokens)

    found = rig.run([(context, LENGTH)])[0]

    assert difference(found, hidden) < TOLERANCES[form]
    assert difference(rig.model.logits(found, range(LENGTH), rig.bases), logits) < TOLERANCES[form]


@pytest.mark.parametrize("model", MODELS)
def test_fused_calls_give_the_bits_of_single_ones(rigs: list[Rig], model: str) -> None:
    found = opened(rigs, model, is_fused=False).alone(LENGTH, seed=3)

    assert torch.equal(found, computed_alone(model, "float32"))


@pytest.mark.parametrize("level", levels())
def test_every_level_of_instructions_computes_the_same_model(rigs: list[Rig], level: str) -> None:
    rig = opened(rigs, "qwen3", "bfloat16", level=level)
    context = rig.start(LENGTH, seed=3)

    assert difference(rig.run([(context, LENGTH)])[0], rig.defined(context.tokens)[0]) < TOLERANCES["bfloat16"]


# ----------------------------------------------------------------------------------------------------------------------- batch invariance


@pytest.mark.parametrize(("model", "form"), EVERYTHING)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_token_has_the_same_bits_whatever_runs_beside_it(rigs: list[Rig], model: str, form: str, num_threads: int) -> None:
    rig = opened(rigs, model, form, num_threads=num_threads)
    context, others = rig.start(LENGTH, seed=3), [rig.start(90, seed) for seed in (4, 5, 6)]
    chunks = (1, 30, 17, 1, 1, 20)  # alone and beside decode rows and chunks of prompts
    found = []
    for idx, count in enumerate(chunks):
        beside = [(other, 1 + (idx + 7 * place) % 13) for place, other in enumerate(others[: idx % 4])]
        answers = rig.run([*beside, (context, count)] if idx % 2 else [(context, count), *beside])
        found.append(answers[-1] if idx % 2 else answers[0])

    assert sum(chunks) == LENGTH
    assert torch.equal(torch.cat(found), computed_alone(model, form))


def test_long_steps_have_the_bits_of_short_ones(rigs: list[Rig]) -> None:
    rig = opened(rigs, "llama", "bfloat16", num_threads=2, max_pages=600)
    whole, first = rig.start(1500, seed=9), rig.start(1500, seed=9)
    found = rig.run([(whole, 1500)])[0]

    pieces = [rig.run([(first, count)])[0] for count in (700, 1, 400, 399)]

    assert torch.equal(torch.cat(pieces), found)


def test_logits_of_a_row_do_not_depend_on_the_others(rigs: list[Rig]) -> None:
    rig = opened(rigs, "gemma3", "bfloat16")
    hidden = rig.alone(LENGTH)
    all_of_them = rig.model.logits(hidden, range(LENGTH), rig.bases)

    for row in (0, 33, 69):
        assert torch.equal(rig.model.logits(hidden, [row], rig.bases)[0], all_of_them[row])


# ------------------------------------------------------------------------------------------------------------------------ greedy tokens


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_the_likeliest_token_is_that_of_the_logits(rigs: list[Rig], model: str) -> None:
    rig = opened(rigs, model, "bfloat16")
    hidden = rig.alone(LENGTH)

    likeliest = rig.model.greedy(hidden, range(LENGTH), rig.bases)

    assert likeliest.tolist() == rig.model.logits(hidden, range(LENGTH), rig.bases).argmax(-1).tolist()


def test_logits_that_a_cap_makes_equal_are(rigs: list[Rig]) -> None:
    rig = opened(rigs, "gemma3")
    hidden = rig.alone(LENGTH)
    table = next(part for part in rig.segments[0].parts if part.name == "embedding")
    rig.memory[0][table.offset_bytes : table.offset_bytes + table.places.size_bytes].view(np.float32)[:] *= 1000

    likeliest = rig.model.greedy(hidden, range(LENGTH), rig.bases)

    logits = rig.model.logits(hidden, range(LENGTH), rig.bases)
    assert int((logits == logits.max(-1, keepdim=True).values).sum(-1).min()) > 1
    assert likeliest.tolist() == logits.argmax(-1).tolist()


def test_of_equal_logits_the_smallest_token_is_taken_and_what_is_not_finite_is_told(rigs: list[Rig]) -> None:
    rig = opened(rigs)
    hidden = rig.alone(LENGTH)
    hidden[1], hidden[2, 5], hidden[3, 7] = 0.0, float("nan"), float("inf")

    likeliest = rig.model.greedy(hidden, range(5), rig.bases)

    assert likeliest[1] == 0
    assert likeliest[2:4].tolist() == [-1, -1]
    assert likeliest[[0, 4]].tolist() == rig.model.logits(hidden, [0, 4], rig.bases).argmax(-1).tolist()


def test_one_logit_that_is_not_a_number_is_found_wherever_it_is(rigs: list[Rig]) -> None:
    rig = opened(rigs, "qwen3")
    hidden = rig.alone(LENGTH)
    head = next(part for part in rig.segments[-1].parts if part.name == "head")
    weights = rig.memory[-1][head.offset_bytes : head.offset_bytes + head.places.size_bytes].view(np.float32)
    weights.reshape(-1, 96, 16)[11, 0, 3] = np.nan  # of token 179

    assert torch.isnan(rig.model.logits(hidden, range(LENGTH), rig.bases)).sum() == LENGTH
    assert rig.model.greedy(hidden, range(LENGTH), rig.bases).tolist() == [-1] * LENGTH


# ----------------------------------------------------------------------------------------------------------------------- streamed layers


def test_layers_run_from_wherever_they_are(rigs: list[Rig]) -> None:
    rig = opened(rigs, "qwen3", "bfloat16")
    context = rig.start(LENGTH, seed=3)
    step, slots = rig.step([(context, LENGTH)]), [np.zeros_like(rig.memory[1]) for _ in range(2)]
    bases = rig.bases.copy()
    bases[1:-1] = 0
    residual = rig.model.first(step, bases)

    for layer in range(rig.config.num_layers):
        slot, segment = slots[layer % 2], rig.memory[1 + layer]
        slot[:] = 0xFF
        slot[: len(segment)] = segment
        bases[1 + layer] = slot.ctypes.data
        rig.model.run_layers(step, residual, (layer, layer + 1), bases)
        bases[1 + layer] = 0

    assert torch.equal(residual, computed_alone("qwen3", "bfloat16"))


# --------------------------------------------------------------------------------------------------------------------------------- adapters


class Adapter:
    """Random changes of some linears of a Llama, as an adapter's table and as what is added to its weights."""

    def __init__(self, rig: Rig, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.changes: dict[tuple[int, str], Tensor] = {}
        self._kept: list[Tensor] = []
        records = []
        for layer in range(rig.config.num_layers):
            for place in PLACES:
                rows, columns = rig.weights[1 + layer][f"{place}.weight"].shape
                if place == "output" and layer == 1:
                    records.append(record_of(torch.empty(0), torch.empty(0), []))
                    continue
                down, up = torch.randn(6, columns, generator=generator).to(dtype), torch.zeros(6, rows).to(dtype)
                blocks = [(0, 2, 0, rows // 2), (2, 6, rows // 2, rows)]
                for first, end, start, stop in blocks:
                    up[first:end, start:stop] = (torch.randn(end - first, stop - start, generator=generator) * 0.02).to(dtype)
                records.append(record_of(down, up, blocks))
                self.changes[layer, place] = (down.float().t() @ up.float()).t()
                self._kept += [down, up]
        self.table = np.frombuffer(b"".join(records), dtype=np.uint8)

    def merge_into(self, rig: Rig) -> None:
        """Change the weights that the definitions read."""
        for (layer, place), change in self.changes.items():
            rig.weights[1 + layer][f"{place}.weight"] += change


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_an_adapter_get_its_change_and_others_keep_their_bits(rigs: list[Rig], dtype: torch.dtype) -> None:
    rig = opened(rigs, num_threads=2)
    adapters = [Adapter(rig, 1, dtype), Adapter(rig, 2, dtype)]
    plain, first, second = (rig.start(LENGTH, seed=3) for _ in range(3))
    tokens = np.concatenate([np.arange(LENGTH, 2 * LENGTH), np.arange(2 * LENGTH, 3 * LENGTH)])
    lora = NativeLora(tokens, np.array([LENGTH, LENGTH]), tuple(one.table for one in adapters), is_bf16=dtype is torch.bfloat16)

    found = rig.run([(plain, LENGTH), (first, LENGTH), (second, LENGTH)], lora)

    assert torch.equal(found[0], computed_alone("llama", "float32"))
    for adapter, hidden in zip(adapters, found[1:], strict=True):
        merged = opened(rigs)
        adapter.merge_into(merged)
        assert difference(hidden, merged.defined(first.tokens)[0]) < 1e-4
        assert difference(hidden, found[0]) > 1e-2


def test_adapted_rows_have_the_same_bits_alone_and_in_pieces(rigs: list[Rig]) -> None:
    rig = opened(rigs, "llama", "bfloat16", num_threads=3)
    adapter = Adapter(rig, 1, torch.bfloat16)

    def lora(first: int, count: int) -> NativeLora:
        return NativeLora(np.arange(first, first + count), np.array([count]), (adapter.table,), is_bf16=True)

    whole, pieces, other = rig.start(LENGTH, seed=3), rig.start(LENGTH, seed=3), rig.start(LENGTH, seed=4)
    expected = rig.run([(whole, LENGTH)], lora(0, LENGTH))[0]

    found = [rig.run([(other, 5), (pieces, count)], lora(5, count))[1] for count in (1, 40, 1, 28)]

    assert torch.equal(torch.cat(found), expected)


# ----------------------------------------------------------------------------------------------------------------------------------- faults


def test_what_is_not_finite_stays_in_its_row(rigs: list[Rig]) -> None:
    rig = opened(rigs, "experts")
    poisoned, fine = rig.start(LENGTH, seed=4), rig.start(LENGTH, seed=3)
    rig.run([(poisoned, LENGTH - 1), (fine, LENGTH - 10)])
    start = int(poisoned.tables[0][0]) * 256
    rig.pages[start : start + P] = 0xFF

    found = rig.run([(poisoned, 1), (fine, 10)])

    assert not torch.isfinite(found[0]).all()
    assert torch.equal(found[1], computed_alone("experts", "float32")[-10:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("token", "vocabulary"),
        ("negative token", "vocabulary"),
        ("position", "positions"),
        ("negative position", "positions"),
        ("pages", "pages"),
        ("frame", "arena"),
        ("negative frame", "arena"),
        ("count", "side by side"),
        ("adapter", "adapters"),
    ],
)
def test_a_step_that_would_reach_outside_is_refused(rigs: list[Rig], change: str, said: str) -> None:
    rig = opened(rigs)
    step = rig.step([(rig.start(20), 20)])
    tokens, rows, frames = step.tokens.copy(), step.rows.copy(), step.frames[0].copy()
    lora = None
    if change.endswith("token"):
        tokens[7] = -1 if change.startswith("negative") else rig.config.vocab_size
    if change.endswith("position"):
        rows[0, 2] = -1 if change.startswith("negative") else rig.config.max_positions - 19
    if change.endswith("frame"):
        frames[1] = -1 if change.startswith("negative") else len(rig.pages) // 256 - 1
    if change == "pages":
        rows[0, 3] = 1
    if change == "count":
        rows[0, 1] = 19
    if change == "adapter":
        lora = NativeLora(np.array([20]), np.array([1]), (Adapter(rig, 1).table,), is_bf16=False)

    with pytest.raises(StepInvalid, match=said):
        rig.model.forward(NativeStep(tokens, rows, (frames,), lora), rig.bases)


def test_an_arena_smaller_than_a_frame_has_none(rigs: list[Rig]) -> None:
    rig = opened(rigs)
    step = rig.step([(rig.start(5), 5)])
    step.frames[0][0] = 0
    rig.model._arena.size_bytes = rig.program.shape.groups[0].frame_bytes - 1

    with pytest.raises(StepInvalid, match="arena"):
        rig.model.forward(step, rig.bases)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, 3e37, float("inf"), float("nan")])
def test_odd_numbers_of_one_token_leave_the_bits_of_others(rigs: list[Rig], form: str, value: float) -> None:
    rig = opened(rigs, "llama", form, num_threads=2)
    odd, fine = rig.start(5, seed=4), rig.start(LENGTH, seed=3)
    step = rig.step([(odd, 5), (fine, LENGTH)])
    residual = rig.model.first(step, rig.bases)
    residual[:5] = value

    rig.model.run_layers(step, residual, (0, rig.config.num_layers), rig.bases)

    assert torch.equal(residual[5:], computed_alone("llama", form))
    assert torch.equal(rig.model.logits(residual, [3, 40], rig.bases)[1], rig.model.logits(residual, [40], rig.bases)[0])


def test_pages_that_left_the_window_may_name_anything(rigs: list[Rig]) -> None:
    rig = opened(rigs, "gemma3")
    context = rig.start(LENGTH, seed=3)
    first = rig.run([(context, LENGTH - 1)])[0]
    context.tables[0][0] = -1

    last = rig.run([(context, 1)])[0]

    assert torch.equal(torch.cat([first, last]), computed_alone("gemma3", "float32"))


def test_the_first_page_in_the_window_may_not(rigs: list[Rig]) -> None:
    rig = opened(rigs, "gemma3")
    context = rig.start(LENGTH, seed=3)
    rig.run([(context, LENGTH - 1)])
    context.tables[0][1] = -1  # the last token sees 30 to 69

    with pytest.raises(StepInvalid, match="arena"):
        rig.run([(context, 1)])


def test_logits_of_rows_that_are_not_there_are_refused(rigs: list[Rig]) -> None:
    rig = opened(rigs)
    hidden = rig.alone(5)

    for rows in ([5], [-1]):
        with pytest.raises(StepInvalid, match=r"of 5"):
            rig.model.logits(hidden, rows, rig.bases)


def test_empty_steps_are_no_trouble(rigs: list[Rig]) -> None:
    rig = opened(rigs)

    assert rig.model.logits(rig.alone(5), [], rig.bases).shape == (0, rig.config.vocab_size)
    assert rig.model.greedy(rig.alone(5), [], rig.bases).shape == (0,)


def test_a_closed_model_does_not_run(rigs: list[Rig]) -> None:
    rig = opened(rigs)
    step = rig.step([(rig.start(5), 5)])
    rig.model.close()

    with pytest.raises(ValueError, match="closed"):
        rig.model.forward(step, rig.bases)


# --------------------------------------------------------------------------------------------------------------------------- what it tells


def test_times_are_told_by_op_and_only_while_they_are_asked_for(rigs: list[Rig]) -> None:
    rig = opened(rigs)
    rig.alone(5)
    assert rig.engine.profile(is_on=True) == {}

    rig.alone(5)
    times = rig.engine.profile(is_on=False)
    rig.alone(5)

    assert times["paged_attention"].calls == rig.config.num_layers
    assert times["norm_linear_act_mul"].wall_ns > 0
    assert rig.engine.profile(is_on=False) == times


@pytest.mark.parametrize("model", ["llama", "experts"])
def test_the_workspace_is_taken_with_the_model_and_grows_with_a_longer_step(rigs: list[Rig], model: str) -> None:
    rig = opened(rigs, model)
    taken = rig.engine.workspace_bytes

    rig.alone(64)
    kept = rig.engine.workspace_bytes
    rig.alone(200)

    assert 0 < taken == kept < rig.engine.workspace_bytes


def test_models_of_one_engine_share_its_workspace(rigs: list[Rig]) -> None:
    rig = opened(rigs)
    other = opened(rigs, "gemma3", engine=rig.engine)
    expected, taken = rig.alone(LENGTH, seed=3), rig.engine.workspace_bytes

    other.alone(LENGTH)

    assert rig.engine.workspace_bytes < 2 * taken
    assert torch.equal(rig.alone(LENGTH, seed=3), expected)


def test_an_engine_wants_a_processor_for_each_thread() -> None:
    with pytest.raises(ValueError, match="2 threads on 1"):
        Engine(2, [0])
