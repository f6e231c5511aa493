"""Every family against `transformers`: its config, its parts, and what it computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.description import describe
from drivers.models.families.reading import ACTIVATIONS
from drivers.models.families.table import FAMILIES, read_config, write_down
from drivers.models.parts import rows_of
from tests.drivers.cpu_rig import SHAPE, TORCH, CpuRig, greedy_reference, prompt_of, reference_logits
from tests.drivers.family_rig import FAMILIES as CASES
from tests.drivers.family_rig import load_parts, save_family
from tests.drivers.interpreter import Interpreter
from tests.drivers.test_decoder import DecoderRig, relative_error


@dataclass(frozen=True)
class Saved:
    """A model on disk and its reference implementation."""

    directory: Path
    reference: transformers.PreTrainedModel


Save = Callable[[str], Saved]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Models by case, each made when it is first asked for."""

    @cache
    def make(case: str) -> Saved:
        directory = tmp_path_factory.mktemp(case)
        return Saved(directory, save_family(directory, case))

    return make


def logits(directory: Path, prompt: list[int], max_positions: int = 0) -> Tensor:
    """What our description of a model on disk computes."""
    config, segments = load_parts(directory, max_positions)
    with torch.inference_mode():
        return Interpreter(config, segments).logits(prompt)


def change_config(directory: Path, **changes: object) -> None:
    """Change fields of a config on disk; a field that becomes `...` is left out."""
    path = directory / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def write_config(directory: Path, architecture: str, **changes: object) -> None:
    """A config alone, in the common spelling."""
    fields = {**SHAPE, "architectures": [architecture], "model_type": FAMILIES[architecture].model_type, **changes}
    (directory / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("case", CASES)
def test_a_description_computes_what_transformers_does(case: str, saved: Save) -> None:
    model, prompt = saved(case), prompt_of(100, 1)
    assert relative_error(logits(model.directory, prompt), reference_logits(model.reference, prompt)) <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_native_code_computes_it_in_chunks_beside_strangers(case: str, saved: Save) -> None:
    lengths = (100, 66, 81) if case == "phi3-long" else (100, 1, 37)  # transformers takes another list of factors for short texts
    model, prompts = saved(case), [prompt_of(length, length) for length in lengths]
    for found, prompt in zip(DecoderRig(model.directory, is_native=True).logits(prompts, chunk=13), prompts, strict=True):
        assert relative_error(found, reference_logits(model.reference, prompt)) <= 1e-4


@pytest.mark.parametrize("options", [{}, TORCH], ids=["native", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_text_of_a_driver_equals_transformers_over_64_tokens(case: str, options: dict[str, str], saved: Save) -> None:
    model, prompt = saved(case), prompt_of(70, 5)
    assert CpuRig(model.directory, options=options).generate(prompt, 64, chunk=20) == greedy_reference(model.reference, prompt, 64)


@pytest.mark.parametrize("case", CASES)
def test_calls_name_parts_that_there_are_and_rows_are_filled_once(case: str, saved: Save) -> None:
    config = read_config(saved(case).directory, 0)
    sheets = write_down(config)
    description = describe(config)
    tied = {"embedding"} if config.is_tied else set()
    for calls, sheet in zip((description.first, *description.layers, description.last), sheets, strict=True):
        names = [part.name for part in sheet.parts]
        used = [name for call in calls for name in call.parts]
        assert set(used) - (tied if sheet is sheets[-1] else set()) == set(names)
        assert len(names) == len(set(names))
        for part in sheet.parts:
            filled = [row for source in part.sources for row in range(source.row, source.row + source.num_rows)]
            assert filled == list(range(rows_of(part.shape)))


def test_code_beside_a_model_is_no_matter_where_it_is_that_of_the_architecture(tmp_path: Path) -> None:
    write_config(tmp_path, "Phi3ForCausalLM")
    plain = read_config(tmp_path, 0)
    change_config(
        tmp_path, auto_map={"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    )
    assert read_config(tmp_path, 0) == plain
    change_config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_phi3.Better"})
    with pytest.raises(ModelUnsupported, match="auto_map is"):
        read_config(tmp_path, 0)


def test_longrope_is_fixed_by_the_declared_maximum(saved: Save) -> None:
    model = saved("phi3-long")
    for length, declared in ((60, 64), (100, 65)):  # transformers takes the list for the length of this very sequence
        prompt = prompt_of(length, 2)
        assert relative_error(logits(model.directory, prompt, max(declared, length)), reference_logits(model.reference, prompt)) <= 1e-4
    names = {read_config(model.directory, declared).rope_name for declared in (64, 65, 512)}
    assert len(names) == 2


def test_longrope_in_the_spelling_of_old_checkpoints_means_the_same(tmp_path: Path) -> None:
    reference = save_family(tmp_path, "phi3-long")
    rope = reference.config.rope_parameters
    scaling = {"type": "su", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    new = read_config(tmp_path, 0)
    change_config(tmp_path, rope_parameters=..., rope_theta=10000.0, rope_scaling=scaling, original_max_position_embeddings=64)
    assert read_config(tmp_path, 0) == new


def test_gemma3_in_the_spelling_of_old_checkpoints_means_the_same(tmp_path: Path) -> None:
    save_family(tmp_path, "gemma3", layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    new = read_config(tmp_path, 0)
    scaling = {"rope_type": "linear", "factor": 4.0}
    old = {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rope_scaling": scaling, "sliding_window_pattern": 2}
    change_config(tmp_path, rope_parameters=..., layer_types=..., **old)
    assert read_config(tmp_path, 0) == new


def test_gpt2_without_the_first_word_of_its_names_and_with_masks_is_read(tmp_path: Path) -> None:
    reference = save_family(tmp_path, "gpt2")
    path = tmp_path / "model.safetensors"
    stored = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file({**stored, "h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}, path)
    prompt = prompt_of(40, 3)
    assert relative_error(logits(tmp_path, prompt), reference_logits(reference, prompt)) <= 1e-4


def test_experts_are_stacked_in_the_order_of_their_numbers(saved: Save) -> None:
    directory = saved("mixtral").directory
    on_disk = load_file(directory / "model.safetensors")
    layer = load_parts(directory)[1][2]
    for expert in range(5):
        gate, up, down = (on_disk[f"model.layers.1.block_sparse_moe.experts.{expert}.{name}.weight"] for name in ("w1", "w3", "w2"))
        assert torch.equal(layer["experts_gate_up"][expert], torch.cat((gate, up)))
        assert torch.equal(layer["experts_down"][expert], down)


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "use_bidirectional_attention": ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}),
    "hidden_activation": ("Gemma2ForCausalLM", {"hidden_activation": "silu"}),
    "query_pre_attn_scalar": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}),
    "attn_logit_softcapping": ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}),
    "hidden_act": ("GemmaForCausalLM", {"hidden_act": "silu"}),
    "scale_attn_by_inverse_layer_idx": ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}),
    "add_cross_attention": ("GPT2LMHeadModel", {"add_cross_attention": True}),
    "activation_function": ("GPT2LMHeadModel", {"activation_function": "tanh"}),
    "num_experts": ("Qwen3MoeForCausalLM", {"num_experts": 0}),
    "use_sliding_window": ("SmolLM3ForCausalLM", {"use_sliding_window": True}),
    "partial_rotary_factor": ("Phi3ForCausalLM", {"partial_rotary_factor": 1.5}),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_a_family_does_not_cover_is_refused_by_the_name_of_its_field(field: str, tmp_path: Path) -> None:
    architecture, changes = REFUSED[field]
    write_config(tmp_path, architecture, **changes)
    with pytest.raises(ModelUnsupported, match=rf"{field} is .*supported is"):
        read_config(tmp_path, 0)


BROKEN: dict[str, tuple[str, dict[str, object]]] = {
    "num_experts_per_tok": ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 5}),
    "more than 131072": ("MixtralForCausalLM", {"num_local_experts": 4096, "num_hidden_layers": 4096}),
    "no_rope_layers": ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}),
    "n_embd": ("GPT2LMHeadModel", {"n_embd": 100, "n_head": 6}),
    "layer_types": ("Gemma2ForCausalLM", {"layer_types": ["full_attention"]}),
    "partial_rotary_factor": ("Phi3ForCausalLM", {"partial_rotary_factor": 0.2}),
    "short_factor": (
        "Phi3ForCausalLM",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}, "original_max_position_embeddings": 64},
    ),
    "long_factor": ("Phi3ForCausalLM", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [0.0] * 8}}),
    "mlp_only_layers": ("Qwen3MoeForCausalLM", {"mlp_only_layers": 3}),
}


@pytest.mark.parametrize("field", BROKEN)
def test_a_config_of_a_family_that_makes_no_sense_is_corrupt_by_the_name_of_its_field(field: str, tmp_path: Path) -> None:
    architecture, changes = BROKEN[field]
    write_config(tmp_path, architecture, **changes)
    with pytest.raises(ModelCorrupt, match=field):
        read_config(tmp_path, 0)


def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    """The widths of real models follow from defaults where a config is terse."""
    facts: dict[str, tuple[object, ...]] = {}
    for architecture in FAMILIES:
        write_config(tmp_path, architecture)
        change_config(tmp_path, **dict.fromkeys(("head_dim", "num_key_value_heads", "max_position_embeddings"), ...))
        change_config(tmp_path, hidden_size=1536, num_attention_heads=32, n_embd=1536, n_head=32)
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        facts[architecture] = (fact_of(read_config(tmp_path, 0)), their_fact(theirs))
    assert {name for name, (ours, theirs) in facts.items() if ours != theirs} == set()


ACTIVATION_FIELDS = ("hidden_activation", "hidden_act", "activation_function")


def fact_of(config: DecoderConfig) -> tuple[object, ...]:
    """What a config that leaves nearly everything out comes to."""
    theta = config.rotary[0].theta if config.rotary else None
    experts = config.experts and (config.experts.settings.num_experts, config.experts.settings.top_k, config.experts.settings.is_normalized)
    window = config.groups[0].window
    return (
        config.num_kv_heads,
        config.head_dim,
        config.max_positions,
        config.norm_eps,
        theta,
        config.is_tied,
        window,
        experts,
        config.activation,
    )


def their_fact(config: transformers.PreTrainedConfig) -> tuple[object, ...]:
    """The same of `transformers`."""
    has_experts = hasattr(config, "num_experts_per_tok")
    rope = getattr(config, "rope_parameters", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None) if kinds[0] == "sliding_attention" else None
    return (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.max_position_embeddings,
        getattr(config, "rms_norm_eps", None) or config.layer_norm_epsilon,
        (rope.get("full_attention") or rope)["rope_theta"] if rope else None,
        config.tie_word_embeddings,
        window,
        (config.num_local_experts, config.num_experts_per_tok, getattr(config, "norm_topk_prob", True)) if has_experts else None,
        ACTIVATIONS[next(getattr(config, name) for name in ACTIVATION_FIELDS if hasattr(config, name))],
    )
