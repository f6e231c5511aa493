"""Model directories: what is taken, what is refused and how it is named, and what a load costs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from drivers.contract import InspectSpec
from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.families.table import read_config
from drivers.models.loader import PageShape, Target, inspect_model, load_weights, open_model
from drivers.models.shards import read_header
from tests.drivers.cpu_rig import SHAPE, save_model

PAGES = PageShape(page_tokens=16, granule_bytes=1024, dtype=torch.float32)
CONFIG: dict[str, object] = {**SHAPE, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small tied Llama model."""
    save_model(tmp_path, "Llama", tie_word_embeddings=True)
    return tmp_path


def change_config(directory: Path, **changes: object) -> None:
    """Write a config with some fields changed."""
    path = directory / "config.json"
    fields = json.loads(path.read_text()) if path.exists() else dict(CONFIG)
    path.write_text(json.dumps({**fields, **changes}))


def write_raw(path: Path, header: object, payload: bytes) -> None:
    """Write a safetensors file with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    """A header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


REFUSED: dict[str, dict[str, object]] = {
    "architectures": {"architectures": ["T5ForConditionalGeneration"]},
    "model_type": {"model_type": "mixtral"},
    "auto_map": {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
    "hidden_act": {"hidden_act": "relu"},
    "rope_type": {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
    "type": {"rope_parameters": None, "rope_scaling": {"type": "ntk-by-parts", "factor": 2.0}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "head_dim": {"head_dim": 15},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_no_code_covers_is_refused_by_the_name_of_its_field(field: str, tmp_path: Path) -> None:
    change_config(tmp_path, **REFUSED[field])
    with pytest.raises(ModelUnsupported, match=rf"{field} is .*supported is"):
        read_config(tmp_path, 0)


BROKEN: dict[str, dict[str, object]] = {
    "hidden_size": {"hidden_size": "96"},
    "num_hidden_layers": {"num_hidden_layers": 0},
    "num_attention_heads": {"num_attention_heads": True},
    "vocab_size": {"vocab_size": -5},
    "rms_norm_eps": {"rms_norm_eps": -1.0},
    "num_key_value_heads": {"num_key_value_heads": 4},
    "tie_word_embeddings": {"tie_word_embeddings": "yes"},
    "eos_token_id": {"eos_token_id": "</s>"},
}


@pytest.mark.parametrize("field", BROKEN)
def test_a_config_that_makes_no_sense_is_corrupt_by_the_name_of_its_field(field: str, tmp_path: Path) -> None:
    change_config(tmp_path, **BROKEN[field])
    with pytest.raises(ModelCorrupt, match=field):
        read_config(tmp_path, 0)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN', "\x00\x01", "[" * 100_000])
def test_a_config_that_is_not_an_object_is_corrupt(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        read_config(tmp_path, 0)


def test_layer_types_that_are_unknown_are_refused(tmp_path: Path) -> None:
    kinds = ["full_attention", "chunked_attention", "full_attention"]
    change_config(
        tmp_path, architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=True, sliding_window=8, layer_types=kinds
    )
    with pytest.raises(ModelUnsupported, match="layer_types"):
        read_config(tmp_path, 0)


def test_a_declared_maximum_past_the_model_is_refused(tmp_path: Path) -> None:
    change_config(tmp_path)
    with pytest.raises(ModelUnsupported, match="goes up to 512"):
        read_config(tmp_path, 513)
    assert read_config(tmp_path, 100).max_positions == 100


def test_a_dynamic_model_may_be_declared_up_to_its_factor(tmp_path: Path) -> None:
    change_config(tmp_path, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert read_config(tmp_path, 1024).max_positions == 1024
    with pytest.raises(ModelUnsupported):
        read_config(tmp_path, 1025)


def test_stop_tokens_come_from_config_and_generation_config(tmp_path: Path) -> None:
    change_config(tmp_path, eos_token_id=2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert read_config(tmp_path, 0).eos_token_ids == (2, 7)


def test_inspect_tells_sizes_groups_and_parameters(model: Path) -> None:
    spec = inspect_model(InspectSpec(str(model)), PAGES)
    assert [segment.name for segment in spec.segments] == ["embedding", "layer.0", "layer.1", "layer.2", "end"]
    assert spec.num_parameters == sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values())
    assert spec.groups[0].frame_bytes == 3 * 16 * 2 * 2 * 16 * 4
    assert (spec.vocab_size, spec.max_positions, spec.eos_token_ids) == (199, 512, (2,))


def test_what_changes_the_bits_of_a_page_changes_the_numerics(model: Path) -> None:
    plain = inspect_model(InspectSpec(str(model)), PAGES).numerics
    assert inspect_model(InspectSpec(str(model)), PageShape(16, 1024, torch.bfloat16)).numerics != plain
    assert inspect_model(InspectSpec(str(model)), PageShape(32, 1024, torch.float32)).numerics != plain
    change_config(model, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    assert inspect_model(InspectSpec(str(model)), PAGES).numerics != plain


def test_pickled_weights_are_refused_with_advice(tmp_path: Path) -> None:
    change_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelUnsupported, match="convert them to safetensors"):
        open_model(InspectSpec(str(tmp_path)), torch.float32)


def test_an_unknown_quantization_is_refused(model: Path) -> None:
    with pytest.raises(ModelUnsupported, match="quant is 'int3'; supported are int8, int4"):
        open_model(InspectSpec(str(model), quant="int3"), torch.float32)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "model.bin", 7])
def test_an_index_cannot_name_anything_but_a_shard_beside_it(shard: object, model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(ModelCorrupt, match="shards are safetensors files of the same directory"):
        open_model(InspectSpec(str(model)), torch.float32)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", max_shard_size="60KB")
    victim = sorted(tmp_path.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ModelCorrupt, match=victim.name):
        open_model(InspectSpec(str(tmp_path)), torch.float32)


HEADERS: dict[str, tuple[object, bytes]] = {
    "is not valid JSON": (b"{nonsense", b""),
    "is not a JSON object": ([], b""),
    "is not an object": ({"a": 5}, b""),
    "has no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "has shape": ({"a": entry(0, 4, [-1])}, b"1234"),
    "has data_offsets": ({"a": entry(4, 0, [1])}, b"1234"),
    "which is not F32 of shape": ({"a": entry(0, 8, [1])}, b"12345678"),
    "overlaps": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"x" * 12),
    "leaves a gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"x" * 12),
    "cut short": ({"a": entry(0, 8, [2])}, b"1234"),
    "the tensors end at": ({"a": entry(0, 4, [1])}, b"12345678"),
}


@pytest.mark.parametrize("problem", HEADERS)
def test_a_safetensors_file_that_lies_is_corrupt_and_says_how(problem: str, tmp_path: Path) -> None:
    header, payload = HEADERS[problem]
    write_raw(tmp_path / "model.safetensors", header, payload)
    with pytest.raises(ModelCorrupt, match=problem):
        read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 62), struct.pack("<Q", 50) + b"{}"])
def test_a_header_length_past_the_file_is_corrupt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"model\.safetensors"):
        read_header(tmp_path / "model.safetensors")


def test_integer_weights_are_unsupported(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", {"a": entry(0, 8, [4], "I16")}, b"12345678")
    with pytest.raises(ModelUnsupported, match="stored as I16"):
        read_header(tmp_path / "model.safetensors")


def test_a_tensor_of_the_wrong_shape_is_named(model: Path) -> None:
    change_config(model, intermediate_size=113)
    with pytest.raises(ModelCorrupt, match=r"gate_proj\.weight has shape"):
        open_model(InspectSpec(str(model)), torch.float32)


def test_a_missing_tensor_is_named(model: Path) -> None:
    change_config(model, tie_word_embeddings=False)
    with pytest.raises(ModelCorrupt, match=r"lack lm_head\.weight"):
        open_model(InspectSpec(str(model)), torch.float32)


def test_a_tensor_that_nothing_would_use_is_refused(model: Path) -> None:
    path = model / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.q_proj.bias": torch.zeros(96)}, path)
    with pytest.raises(ModelUnsupported, match=r"q_proj\.bias"):
        open_model(InspectSpec(str(model)), torch.float32)


def load(directory: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], ...]:
    """Load into an arena of its own."""
    files = open_model(InspectSpec(str(directory)), dtype)
    offsets, end = [], 64
    for segment in files.segments:
        offsets.append(end)
        end += segment.size_bytes
    return load_weights(files, Target(torch.zeros(end, dtype=torch.uint8), offsets, dtype), lambda done, total: None)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_to_the_dtype_of_the_driver(stored: torch.dtype, wanted: torch.dtype, tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", tie_word_embeddings=True, dtype=stored)
    on_disk = load_file(tmp_path / "model.safetensors")
    segments = load(tmp_path, wanted)
    assert torch.equal(segments[0]["embedding"], on_disk["model.embed_tokens.weight"].to(wanted))
    assert torch.equal(segments[1]["down.weight"], on_disk["model.layers.0.mlp.down_proj.weight"].to(wanted))


def test_a_header_of_odd_length_does_not_disturb_the_weights(model: Path) -> None:
    expected = load(model, torch.float32)
    raw = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].rstrip(b" ")
    header += b" " * (1 - len(header) % 2)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    found = load(model, torch.float32)
    assert all(torch.equal(one[name], two[name]) for one, two in zip(found, expected, strict=True) for name in two)


def test_no_byte_of_who_was_there_before_stays_between_the_parts(tmp_path: Path) -> None:
    """Parts of odd sizes leave gaps, which an image of the segment would take along."""
    save_model(tmp_path, "Llama", hidden_size=36, intermediate_size=50, num_attention_heads=3, num_key_value_heads=3, head_dim=12)
    files = open_model(InspectSpec(str(tmp_path)), torch.float32)
    arenas = []
    for stale in (0x00, 0xFF):
        offsets, end = [], 0
        for segment in files.segments:
            offsets.append(end)
            end += segment.size_bytes
        arena = torch.full((end,), stale, dtype=torch.uint8)
        load_weights(files, Target(arena, offsets, torch.float32), lambda done, total: None)
        arenas.append(arena)
    assert torch.equal(*arenas)


def test_query_heads_are_stored_group_major(model: Path) -> None:
    on_disk = load_file(model / "model.safetensors")
    layer = load(model, torch.float32)[1]
    stored = on_disk["model.layers.0.self_attn.q_proj.weight"].view(2, 3, 16, 96)  # [kv_heads, queries, head_dim, hidden]
    assert torch.equal(layer["qkv.weight"][:96].view(3, 2, 16, 96), stored.transpose(0, 1))
    assert torch.equal(layer["qkv.weight"][96:128], on_disk["model.layers.0.self_attn.k_proj.weight"])


def test_progress_counts_up_to_the_bytes_in_the_arena(model: Path) -> None:
    files = open_model(InspectSpec(str(model)), torch.bfloat16)
    size_bytes = sum(segment.size_bytes for segment in files.segments)
    offsets = [sum(before.size_bytes for before in files.segments[:idx]) for idx in range(len(files.segments))]
    seen: list[tuple[int, int]] = []
    load_weights(
        files, Target(torch.zeros(size_bytes, dtype=torch.uint8), offsets, torch.bfloat16), lambda done, total: seen.append((done, total))
    )
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


MEASURE = """
import resource, sys, torch
from drivers.contract import InspectSpec
from drivers.models.loader import Target, load_weights, open_model
files = open_model(InspectSpec(sys.argv[1]), torch.bfloat16)
size = sum(segment.size_bytes for segment in files.segments)
offsets, end = [], 0
for segment in files.segments:
    offsets.append(end)
    end += segment.size_bytes
arena = torch.ones(size, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_weights(files, Target(arena, offsets, torch.bfloat16), lambda done, total: None)
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_load_needs_no_second_copy_in_memory(tmp_path: Path) -> None:
    """The stored file is twice as large as the weights in place, and the process grows by a small part of either."""
    save_model(tmp_path, "Llama", tie_word_embeddings=True, hidden_size=768, intermediate_size=4096, head_dim=128, num_hidden_layers=6)
    result = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    size_bytes, grown_bytes = map(int, result.stdout.split())
    assert size_bytes > 100 << 20
    assert grown_bytes <= size_bytes // 10
