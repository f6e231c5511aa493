"""Writes a Llama model of the Hugging Face form as GGUF, without a vocabulary. Arguments: from, to, "bf16", "q8_0" or "q4_0"."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors import safe_open

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama_ftype


def main(source: Path, target: Path, kind: str) -> None:
    """Write the file in bfloat16, and let the library quantize it where asked."""
    plain = target if kind == "bf16" else target.with_suffix(".bf16.gguf")
    write_bf16(source, plain)
    if kind == "bf16":
        return
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = FILE_TYPES[kind], 2
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(target).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"{plain} could not be quantized to {kind}")
    plain.unlink()


def write_bf16(source: Path, target: Path) -> None:
    """The model in bfloat16; vectors in float32, as the library wants them."""
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    with safe_open(source / "model.safetensors", "np") as tensors:  # NumPy has no bfloat16: read as words below
        names = list(tensors.keys())
    raw = np.memmap(source / "model.safetensors", dtype=np.uint8, mode="r")
    header_bytes = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + header_bytes].tobytes())
    for name in names:
        begin, end = (8 + header_bytes + offset for offset in header[name]["data_offsets"])
        words = raw[begin:end].view(np.uint16).reshape(header[name]["shape"])
        values = (words.astype(np.uint32) << 16).view(np.float32)
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for projection, count in heads.items():
            if projection in name:  # the library turns neighbouring dimensions, Hugging Face halves
                values = values.reshape(count, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            words = np.ascontiguousarray((np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16))
            writer.add_tensor(gguf_name(name), words.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """What the library calls a tensor."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _model, _layers, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
