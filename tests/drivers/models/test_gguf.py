"""GGUF files, written with the package of llama.cpp as its converter writes them, against the checkpoints that they were made of."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from drivers.contract import InspectSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.gguf import read_gguf
from drivers.models.checkpoint import read_checkpoint
from drivers.models.config import DecoderConfig
from drivers.models.quant.gguf_blocks import BLOCK_TYPES
from drivers.models.rotary import inverse_frequencies
from drivers.models.runtime import Runtime
from drivers.models.tiles import floats
from tests.drivers.models.checkpoint_rig import load

Array = np.ndarray
SHAPE: dict[str, object] = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHORT = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def name_in_gguf(name: str, has_post_norms: bool) -> str:
    """What the converter calls a tensor."""
    module, _, last = name.rpartition(".")
    if module in TOP:
        return f"{TOP[module]}.{last}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    assert match is not None, name
    short = "post_attention_norm" if has_post_norms else "ffn_norm"
    return f"blk.{match[1]}.{SHORT.get(match[2], short)}.{last}"


def paired(rows: Array, heads: int) -> Array:
    """What the converter does to the rows of queries and keys of Llama's kin."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model: transformers.PreTrainedModel, arch: str) -> dict[str, Array]:
    """The tensors that the converter would write."""
    config, found = model.config, {}
    has_post_norms = arch.startswith("gemma") and arch != "gemma"
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == "llama" and re.search(r"[qk]_proj", name):
            values = paired(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1.0
        found[name_in_gguf(name, has_post_norms)] = values
    return found


def metadata_of(model: transformers.PreTrainedModel, arch: str) -> dict[str, object]:
    """The keys that the converter would write."""
    config = model.config
    return {
        "general.architecture": arch,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": getattr(config, "head_dim", 32),
        f"{arch}.attention.value_length": getattr(config, "head_dim", 32),
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def write_gguf(
    path: Path,
    metadata: Mapping[str, object],
    tensors: Mapping[str, Array],
    type_of: Callable[[str], GGMLQuantizationType] = lambda _name: GGMLQuantizationType.F32,
) -> Path:
    """Write a file; matrices are of the type that is said for their names."""
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        kind = gguf.GGUFValueType.UINT32 if isinstance(value, int) and not isinstance(value, bool) else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind, gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None)
    for name, values in tensors.items():
        kind = type_of(name) if values.ndim > 1 else GGMLQuantizationType.F32
        raw = values if kind is GGMLQuantizationType.F32 else encoded(values, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encoded(values: Array, kind: GGMLQuantizationType) -> Array:
    """Values as blocks; where the package cannot quantize, blocks of random integers with small scales."""
    try:
        return quants.quantize(values.astype(np.float32), kind)
    except NotImplementedError:
        return random_blocks(values.shape, kind)


SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208]}


def random_blocks(shape: tuple[int, ...], kind: GGMLQuantizationType) -> Array:
    """Blocks of random bytes whose float16 scales are small."""
    random = np.random.default_rng(11)
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // columns, size)).astype(np.uint8)
    for start in SCALES.get(kind.name, [0, 2]):
        blocks[..., start : start + 2] = random.uniform(-0.05, 0.05, blocks.shape[:-1]).astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def model_of(family: str, **changes: object) -> transformers.PreTrainedModel:
    """A small random model."""
    torch.manual_seed(5)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    return model.float().eval()


def parts_of(path: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Config, and all parts of a model in float32."""
    files, segments = load(path, Runtime(torch.float32))
    return files.config, {f"{idx}.{name}": part for idx, parts in enumerate(segments) for name, part in parts.items()}


# Family in transformers, keys beside those of all.
FAMILIES: dict[str, tuple[str, Mapping[str, object], Mapping[str, object]]] = {
    "llama": ("Llama", {"attention_bias": True}, {}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, {}),
    "qwen3": ("Qwen3", {}, {}),
    "gemma": ("Gemma", {}, {}),
    "gemma2": (
        "Gemma2",
        {"num_attention_heads": 4, "query_pre_attn_scalar": 32, "sliding_window": 64},
        {"gemma2.attn_logit_softcapping": 50.0, "gemma2.final_logit_softcapping": 30.0, "gemma2.attention.sliding_window": 64},
    ),
    "gemma3": (
        "Gemma3Text",
        {"num_attention_heads": 4, "query_pre_attn_scalar": 32, "sliding_window": 64, "rope_parameters": None},
        {"gemma3.attention.sliding_window": 64, "gemma3.rope.freq_base": 1000000.0},
    ),
    "phi3": ("Phi3", {"sliding_window": 64}, {"phi3.attention.sliding_window": 64}),
}


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_converted_model_is_the_model_that_it_was_converted_from(arch: str, tmp_path: Path) -> None:
    family, changes, keys = FAMILIES[arch]
    model = model_of(family, **changes)
    model.save_pretrained(tmp_path / "hf")
    path = write_gguf(tmp_path / "model.gguf", {**metadata_of(model, arch), **keys}, tensors_of(model, arch))
    config, parts = parts_of(path)
    other_config, others = parts_of(tmp_path / "hf")
    assert parts.keys() == others.keys()
    for name, part in parts.items():
        shift = 1.0 if arch.startswith("gemma") and name.endswith("norm") else 0.0
        assert torch.equal(part, others[name] + shift), name
    assert config.groups == other_config.groups
    assert not config.has_unit_offset, "what is stored has it added"
    assert config.attention_scale == pytest.approx(other_config.attention_scale)
    assert (config.attention_softcap, config.logits_softcap) == (other_config.attention_softcap, other_config.logits_softcap)
    assert (config.activation, config.embedding_scale) == (other_config.activation, other_config.embedding_scale)
    assert (config.bos_token_id, config.eos_token_ids, config.norm_eps) == (1, (2,), pytest.approx(other_config.norm_eps))
    for ours, theirs in zip(config.rotary, other_config.rotary, strict=True):
        torch.testing.assert_close(inverse_frequencies(ours, 32, 128), inverse_frequencies(theirs, 32, 128))


def test_stacked_experts_come_apart(tmp_path: Path) -> None:
    model = model_of("Mixtral", num_local_experts=4, num_experts_per_tok=2, num_hidden_layers=1, intermediate_size=64)
    random = np.random.default_rng(2)
    tensors = {name: values for name, values in tensors_of(model_of("Llama", num_hidden_layers=1), "llama").items() if "ffn" not in name}
    tensors["blk.0.ffn_norm.weight"] = np.ones(256, np.float32)
    tensors["blk.0.ffn_gate_inp.weight"] = random.standard_normal((4, 256)).astype(np.float32)
    for name, shape in (("gate", (4, 64, 256)), ("up", (4, 64, 256)), ("down", (4, 256, 64))):
        tensors[f"blk.0.ffn_{name}_exps.weight"] = random.standard_normal(shape).astype(np.float32)
    metadata = {**metadata_of(model, "llama"), "llama.expert_count": 4, "llama.expert_used_count": 2}
    config, parts = parts_of(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    assert config.architecture == "MixtralForCausalLM"
    stacked = np.concatenate([tensors["blk.0.ffn_gate_exps.weight"], tensors["blk.0.ffn_up_exps.weight"]], axis=1)
    np.testing.assert_array_equal(parts["1.experts_gate_up"].numpy(), stacked)
    np.testing.assert_array_equal(parts["1.experts_down"].numpy(), tensors["blk.0.ffn_down_exps.weight"])


@pytest.mark.parametrize("kind", [GGMLQuantizationType(type_id) for type_id in BLOCK_TYPES], ids=lambda kind: kind.name)
def test_blocks_are_what_llama_cpp_says_they_are(kind: GGMLQuantizationType) -> None:
    block = BLOCK_TYPES[kind]
    assert (block.name, (block.columns, block.block_bytes)) == (kind.name, gguf.GGML_QUANT_SIZES[kind])
    if block.columns > 1:
        raw = random_blocks((5, 1024), kind)
        truth = quants.dequantize(raw, kind)
    else:
        values = quants.quantize(np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32), kind)
        truth, raw = quants.dequantize(values, kind), values.view(np.uint8)
    tile = block.decode(raw.reshape(5, -1, block.block_bytes))
    found = floats(tile)
    if kind in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K):  # their scales are rounded to float16
        assert tile.scales is not None
        step = np.abs(tile.scales.astype(np.float32)).repeat(32, axis=1)
        assert (np.abs(found - truth) <= step * 0.02).all()
        assert np.median(np.abs(found - truth) / step.clip(1e-9)) < 0.004
    else:
        np.testing.assert_array_equal(found, truth.reshape(found.shape))


MIXES: dict[str, tuple[Callable[[str], GGMLQuantizationType], str]] = {
    "Q8_0": (lambda _name: GGMLQuantizationType.Q8_0, "int8 in groups of 32"),
    "Q4_0": (lambda name: GGMLQuantizationType.Q4_0 if "blk" in name else GGMLQuantizationType.Q8_0, "int4 in groups of 32"),
    "Q4_K_M": (
        lambda name: GGMLQuantizationType.Q6_K if "attn_v" in name or name.startswith("output") else GGMLQuantizationType.Q4_K,
        "int4 in groups of 32 with offsets",
    ),
    "F16": (lambda _name: GGMLQuantizationType.F16, "float32"),
}


@pytest.mark.parametrize("runtime", [Runtime(torch.float32), Runtime(torch.float32, is_native=True)], ids=["rows", "panels"])
@pytest.mark.parametrize("mix", MIXES)
def test_a_quantized_file_is_what_its_blocks_stand_for(mix: str, runtime: Runtime, tmp_path: Path) -> None:
    type_of, form = MIXES[mix]
    model = model_of("Llama", num_hidden_layers=1)
    tensors = tensors_of(model, "llama")
    path = write_gguf(tmp_path / "model.gguf", metadata_of(model, "llama"), tensors, type_of)
    files, (first, layer, _) = load(path, runtime)
    forms = {part.name: part.storage.name for part in files.segments[1].parts}
    assert forms["gate_up.weight"] == form
    if mix == "Q4_K_M":
        assert forms["qkv.weight"] == "float32", "of three tensors of two kinds"

    def truth(name: str) -> Array:
        kind = type_of(name)
        return quants.dequantize(encoded(tensors[name], kind), kind).astype(np.float32).reshape(tensors[name].shape)

    tolerance = 0.02 if mix == "Q4_K_M" else 1e-7
    np.testing.assert_allclose(first["embedding"].numpy(), truth("token_embd.weight"), atol=tolerance)
    gate_up = np.concatenate([truth("blk.0.ffn_gate.weight"), truth("blk.0.ffn_up.weight")])
    np.testing.assert_allclose(layer["gate_up.weight"].numpy(), gate_up, atol=tolerance)
    keys = truth("blk.0.attn_k.weight").reshape(2, 16, 2, 256).swapaxes(1, 2).reshape(64, 256)
    np.testing.assert_allclose(layer["qkv.weight"][256:320].numpy(), keys, atol=tolerance)
    assert files.quant.startswith("gguf") == (mix != "F16")


def test_frequencies_that_are_a_tensor_divide_the_rotary_ones(tmp_path: Path) -> None:
    model = model_of("Llama", num_hidden_layers=1)
    factors = np.linspace(1, 8, 16).astype(np.float32)
    tensors = {**tensors_of(model, "llama"), "rope_freqs.weight": factors}
    config, _ = parts_of(write_gguf(tmp_path / "model.gguf", metadata_of(model, "llama"), tensors))
    plain = 10000.0 ** (-np.arange(16) / 16)
    np.testing.assert_allclose(inverse_frequencies(config.rotary[0], 32, 128).numpy(), plain / factors, rtol=1e-5)
    assert config.rotary[0].attention_factor == 1.0


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file that is good."""
    model = model_of("Llama", num_hidden_layers=1)
    return write_gguf(tmp_path / "model.gguf", metadata_of(model, "llama"), tensors_of(model, "llama"))


def test_a_directory_with_one_file_is_that_model(small: Path) -> None:
    assert read_checkpoint(InspectSpec(str(small.parent))).config == read_checkpoint(InspectSpec(str(small))).config
    small.with_name("other.gguf").write_bytes(small.read_bytes())
    with pytest.raises(ModelUnsupported, match=r"several GGUF files \(model.gguf, other.gguf\)"):
        read_checkpoint(InspectSpec(str(small.parent)))


UNKNOWN: dict[str, tuple[dict[str, object], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "general.architecture is 'mamba'; supported is one of llama"),
    "key": ({"llama.attention.clamp_kqv": 8.0}, r"llama\.attention\.clamp_kqv is 8.0; it is not understood"),
    "scaling": ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope'"),
    "not causal": ({"llama.attention.causal": False}, "attention.causal is False"),
    "split": ({"split.count": 3}, "one file of several"),
    "layers that differ": ({"llama.feed_forward_length": [512, 256]}, "feed_forward_length is not the same for all layers"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_understood_is_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, message = UNKNOWN[case]
    model = model_of("Llama", num_hidden_layers=1)
    path = write_gguf(tmp_path / "m.gguf", {**metadata_of(model, "llama"), **changes}, tensors_of(model, "llama"))
    with pytest.raises(ModelUnsupported, match=message):
        read_checkpoint(InspectSpec(str(path)))


MISFITS: dict[str, tuple[dict[str, object], dict[str, Array], str]] = {
    "a list of ends": ({"tokenizer.ggml.eos_token_id": [1]}, {}, r"eos_token_id is \[1\]; it has to be a whole number"),
    "no heads": ({"llama.attention.head_count": 0}, {}, "num_attention_heads is 0"),
    "experts that are not said": ({}, {"blk.0.ffn_up_exps.weight": np.ones((3, 4, 4), np.float32)}, "a stack of 0 matrices"),
    "more experts than are said": (
        {"llama.expert_count": 4, "llama.expert_used_count": 2},
        {"blk.0.ffn_up_exps.weight": np.ones((50, 4, 4), np.float32)},
        "a stack of 4 matrices",
    ),
    "factors that are a matrix": ({}, {"rope_freqs.weight": np.ones((16, 2), np.float32)}, "a vector of at most 8192 numbers"),
    "more factors than any head has": ({}, {"rope_freqs.weight": np.ones(8193, np.float32)}, "a vector of at most 8192 numbers"),
    "factors of 0": ({}, {"rope_freqs.weight": np.zeros(16, np.float32)}, "finite numbers above 0"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_keys_and_tensors_that_do_not_fit_each_other_are_corrupt(case: str, tmp_path: Path) -> None:
    changes, tensors, message = MISFITS[case]
    model = model_of("Llama", num_hidden_layers=1)
    path = write_gguf(tmp_path / "m.gguf", {**metadata_of(model, "llama"), **changes}, {**tensors_of(model, "llama"), **tensors})
    with pytest.raises(ModelCorrupt, match=message):
        read_checkpoint(InspectSpec(str(path)))


def test_the_largest_gemma_without_heads_is_corrupt(tmp_path: Path) -> None:
    family, changes, keys = FAMILIES["gemma2"]
    model = model_of(family, **changes)
    metadata = {**metadata_of(model, "gemma2"), **keys, "gemma2.attention.head_count": 0, "gemma2.block_count": 46}
    with pytest.raises(ModelCorrupt, match="num_attention_heads is 0"):
        read_checkpoint(InspectSpec(str(write_gguf(tmp_path / "m.gguf", metadata, tensors_of(model, "gemma2")))))


def text(value: str) -> bytes:
    """A string as GGUF has it."""
    return struct.pack("<Q", len(value)) + value.encode()


def header(num_tensors: int = 0, keys: tuple[bytes, ...] = (), tensors: bytes = b"", version: int = 3) -> bytes:
    """The beginning of a file."""
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, len(keys)) + b"".join(keys) + tensors


def info(name: str, sizes: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    """The entry of a tensor."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, type_id, offset)


HUGE = 1 << 60
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends within its header"),
    "another file": (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
    "cut short": (header(keys=(text("a") + struct.pack("<I", 6),)), "ends within its header"),
    "tensors without end": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), f"says that it has {HUGE} tensors"),
    "keys without end": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), f"says that it has {HUGE} keys"),
    "a string without end": (header(keys=(struct.pack("<Q", HUGE) + bytes(16),)), "bytes in a string"),
    "a list without end": (header(keys=(text("a") + struct.pack("<IIQ", 9, 6, HUGE) + bytes(16),)), "numbers; the file has"),
    "strings without end": (header(keys=(text("a") + struct.pack("<IIQ", 9, 8, HUGE) + bytes(16),)), "strings; the file has"),
    "lists of lists": (header(keys=(text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(16),)), "a list of type 9"),
    "a strange type": (header(keys=(text("a") + struct.pack("<I", 77) + bytes(16),)), "metadata of type 77"),
    "a key twice": (header(keys=(text("a") + struct.pack("<IB", 0, 1),) * 2), "a twice"),
    "not text": (header(keys=(struct.pack("<Q", 2) + b"\xff\xfe" + bytes(16),)), "not UTF-8"),
    "many dimensions": (header(1, (), text("t") + struct.pack("<I", 9) + bytes(80)), "9 dimensions"),
    "no size": (header(1, (), info("t", (0,)) + bytes(40)), "sizes"),
    "an enormous size": (header(1, (), info("t", (HUGE,)) + bytes(40)), "sizes"),
    "two of one name": (header(2, (), info("t", (4,)) * 2 + bytes(64)), "two tensors of one name"),
    "a crooked start": (header(1, (), info("t", (4,), offset=5) + bytes(64)), "no multiple of 32"),
    "a strange alignment": (header(keys=(text("general.alignment") + struct.pack("<II", 4, 7),)), "alignment"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_file_that_lies_is_corrupt_and_nothing_is_taken_for_it(case: str, tmp_path: Path) -> None:
    content, message = LIES[case]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelCorrupt, match=re.escape(message)):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("version", [1, 4, 0x03000000])
def test_other_versions_are_unsupported(version: int, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(header(version=version))
    with pytest.raises(ModelUnsupported, match="supported are 2 and 3"):
        read_gguf(tmp_path / "m.gguf")


def test_every_truncation_is_noticed(small: Path) -> None:
    whole = small.read_bytes()
    start = read_gguf(small).data_start
    for size in [*range(0, start, 97), start, len(whole) - 1]:
        small.write_bytes(whole[:size])
        with pytest.raises(ModelCorrupt):
            read_checkpoint(InspectSpec(str(small)))


def test_tensors_that_overlap_are_corrupt(small: Path) -> None:
    whole = small.read_bytes()
    place = whole.index(b"blk.0.attn_v.weight") + len(b"blk.0.attn_v.weight") + 4 + 16 + 4
    small.write_bytes(whole[:place] + struct.pack("<Q", 0) + whole[place + 8 :])
    with pytest.raises(ModelCorrupt, match="overlaps the tensor before it"):
        read_checkpoint(InspectSpec(str(small)))


def test_rows_that_are_no_whole_blocks_are_corrupt(tmp_path: Path) -> None:
    keys = (text("general.architecture") + struct.pack("<I", 8) + text("llama"),)
    (tmp_path / "m.gguf").write_bytes(header(1, keys, info("token_embd.weight", (40, 8), 8)) + bytes(4096))
    with pytest.raises(ModelCorrupt, match="40 columns; blocks of Q8_0 have 32"):
        read_checkpoint(InspectSpec(str(tmp_path / "m.gguf")))


def test_a_type_that_there_is_not_is_unsupported_by_its_number(tmp_path: Path) -> None:
    keys = (text("general.architecture") + struct.pack("<I", 8) + text("llama"),)
    (tmp_path / "m.gguf").write_bytes(header(1, keys, info("token_embd.weight", (256, 8), 16)) + bytes(4096))
    with pytest.raises(ModelUnsupported, match=r"is of type 16; supported are F32, .*Q6_K"):
        read_checkpoint(InspectSpec(str(tmp_path / "m.gguf")))
