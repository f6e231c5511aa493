"""Architectures without a family, by their modules in `transformers` over our pages: equal to them, or refused with a reason."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drivers.conformance import run, subject_of
from drivers.contract import InspectSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.adapter import open_adapter
from drivers.models.config import DecoderConfig
from drivers.models.families.table import read_config
from drivers.models.foreign.decoder import ForeignDecoder, make_decoder
from drivers.models.loader import open_model
from tests.drivers.cpu_rig import SHAPE, CpuRig, greedy_reference, prompt_of, reference_logits, save_model
from tests.drivers.peft_rig import save_adapter
from tests.drivers.test_decoder import DecoderRig, relative_error
from tests.drivers.test_streamed_model import Rig, tokens_of

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "neox-renamed-head": ("GPTNeoX", {"rotary_pct": 0.5}),
    "opt-learned-positions": ("OPT", {"ffn_dim": 112, "word_embed_proj_dim": 96}),
    "cohere2-windows": ("Cohere2", {"sliding_window": 20, "layer_types": KINDS, "logit_scale": 0.3}),
    "olmoe-experts-stored-apart": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "vaultgemma-softcap": ("VaultGemma", {"sliding_window": 20, "layer_types": KINDS, "attn_logit_softcapping": 2.0}),
    "bigcode-one-kv-head": ("GPTBigCode", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_text_equal_transformers(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    reference = save_model(tmp_path, family, **changes)
    prompts = [prompt_of(100, 1), prompt_of(1, 2), prompt_of(37, 3)]
    rig = DecoderRig(tmp_path)
    assert isinstance(rig.decoder, ForeignDecoder)
    for found, prompt in zip(rig.logits(prompts, chunk=13), prompts, strict=True):
        assert relative_error(found, reference_logits(reference, prompt)) <= 1e-4
    assert CpuRig(tmp_path).generate(prompts[2], 64, chunk=20) == greedy_reference(reference, prompts[2], 64)


def test_layers_with_windows_are_a_group_of_their_own(tmp_path: Path) -> None:
    family, changes = CASES["cohere2-windows"]
    save_model(tmp_path, family, **changes)
    config = read_config(tmp_path, 0)
    assert [(group.layers, group.window) for group in config.groups] == [((0, 2), 20), ((1,), None)]


def test_a_streamed_model_says_what_a_resident_one_says(tmp_path: Path) -> None:
    save_model(tmp_path, "StableLm")
    said = []
    for streamed in ((), (1, 2, 3)):
        rig = Rig(8)
        rig.load(1, tmp_path, streamed, num_slots=2)
        prompt = prompt_of(20, 1)
        said.append(tokens_of(rig.run({0: len(prompt)}, 12, [rig.start(0, 1, prompt)]), 0))
        rig.driver.close()
    assert len(said[0]) == 12
    assert said[0] == said[1]


def test_the_driver_keeps_its_contract_with_such_a_model(tmp_path: Path) -> None:
    family, changes = CASES["cohere2-windows"]
    save_model(tmp_path, family, **{**changes, "vocab_size": 256})
    with subject_of("cpu", tmp_path) as subject:
        assert [(outcome.name, outcome.complaint) for outcome in run(subject) if outcome.complaint] == []


def test_a_model_that_is_another_over_pages_is_found_out_before_it_runs(tmp_path: Path) -> None:
    save_model(tmp_path, "StableLm")
    decoder = DecoderRig(tmp_path).decoder
    assert decoder.config.foreign is not None
    attention = tuple(replace(each, scale=2 * each.scale) for each in decoder.config.foreign.attention)
    wrong = replace(decoder.config, foreign=replace(decoder.config.foreign, attention=attention))
    with torch.inference_mode(), pytest.raises(ModelUnsupported, match="is not what it is with its own attention"):
        make_decoder(wrong, tmp_path, (decoder.weights, decoder.pages), (decoder.cover, decoder.table))


def write(directory: Path, architecture: str, model_type: str, **changes: object) -> Path:
    """A config alone."""
    fields = {**SHAPE, "architectures": [architecture], "model_type": model_type, **changes}
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
REFUSED: dict[str, tuple[str, str, dict[str, object]]] = {
    "remembers more than keys and values": ("MambaForCausalLM", "mamba", {}),
    "attends in 0 of 3 layers": ("BloomForCausalLM", "bloom", {}),
    "attends in 2 of 3 layers": ("Lfm2ForCausalLM", "lfm2", {"layer_types": ["conv", "full_attention", "full_attention"]}),
    "code of its own in transformers": ("GPTJForCausalLM", "gptj", {}),
    "does not tell its attention the window of layer 0": ("StableLmForCausalLM", "stablelm", {"layer_types": KINDS}),
    "attends with s_aux": ("GptOssForCausalLM", "gpt_oss", {"num_local_experts": 4}),
    "rope_type is 'dynamic'": ("StableLmForCausalLM", "stablelm", {"rope_parameters": DYNAMIC}),
    "architectures is .*supported is": ("T5ForConditionalGeneration", "t5", {}),
    "architectures is .*with model_type": ("OPTForCausalLM", "stablelm", {}),
    "num_hidden_layers is 100000": ("StableLmForCausalLM", "stablelm", {"num_hidden_layers": 100000}),
    "num_local_experts is 1000000000": ("GraniteMoeForCausalLM", "granitemoe", {"num_local_experts": 10**9}),
    "auto_map is": ("StableLmForCausalLM", "stablelm", {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}),
    "quantization_config is": ("StableLmForCausalLM", "stablelm", {"quantization_config": {"quant_method": "awq"}}),
    "a number by itself": ("ApertusForCausalLM", "apertus", {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_paged_attention_cannot_do_is_refused_by_name(reason: str, tmp_path: Path) -> None:
    architecture, model_type, changes = REFUSED[reason]
    with pytest.raises(ModelUnsupported, match=reason):
        read_config(write(tmp_path, architecture, model_type, **changes), 0)


def test_a_config_that_transformers_cannot_read_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="transformers cannot read it"):
        read_config(write(tmp_path, "StableLmForCausalLM", "stablelm", hidden_size="wide"), 0)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, "StableLm")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_qkv_bias": True}))
    with pytest.raises(ModelCorrupt, match=r"lack model\.layers\.0\.self_attn\.q_proj\.bias"):
        open_model(InspectSpec(str(tmp_path)), torch.float32)


def test_quantization_and_adapters_are_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "base", "StableLm")
    save_adapter(tmp_path / "a", model)
    with pytest.raises(ModelUnsupported, match="leave quant and kv_quant out"):
        open_model(InspectSpec(str(tmp_path / "base"), quant="int8"), torch.float32)
    with pytest.raises(ModelUnsupported, match="adapters are for the families"):
        open_adapter(InspectSpec(str(tmp_path / "a"), base=str(tmp_path / "base")), torch.float32)


def test_without_transformers_the_refusal_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelUnsupported, match=r"kerneld\[hf\]"):
        read_config(write(tmp_path, "StableLmForCausalLM", "stablelm"), 0)


def test_the_version_of_transformers_is_part_of_what_a_page_depends_on(tmp_path: Path) -> None:
    save_model(tmp_path, "StableLm")
    config: DecoderConfig = read_config(tmp_path, 0)
    assert config.foreign is not None
    assert config.rope_name != replace(config, foreign=replace(config.foreign, version="1.0")).rope_name
