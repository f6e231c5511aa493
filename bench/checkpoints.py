"""The shipped model in the formats of quantized checkpoints, each weight rounded to the nearest that its format has.

Tools that make such checkpoints choose better than the nearest; what is seen here is the least that a format does. The embedding and the
norms stay as they are. The layouts are those of the formats' own specifications, as `drivers.models.quant` and `drivers.models.gguf` read
them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Ggml
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP, BLOCK = 32, 128
FP8_MOST = 448.0
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LINEAR = re.compile(r"(model\.layers\.\d+\.\w+\.\w+_proj)\.weight")
IN_GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip

Encode = Callable[[Tensor], dict[str, Tensor]]  # of a linear [rows, columns] f32: its stored parts


@dataclass(frozen=True, slots=True)
class Format:
    """A format of safetensors."""

    config: Mapping[str, object]  # `quantization_config`
    encode: Encode


def packed(values: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Values of four bits along the last axis into words, the lowest bits first."""
    words = torch.zeros(*values.shape[:-1], values.shape[-1] // 8, dtype=torch.int64)
    for place, idx in enumerate(order):
        words |= values[..., idx::8].long() << (4 * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def in_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 15, and scales and zero points of each group of columns."""
    groups = weight.view(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1).clamp_max(0.0), groups.amax(-1).clamp_min(0.0)
    scales = ((high - low) / 15).half().float().clamp_min(1e-7)
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    return codes.view(weight.shape).int(), scales, zeros.int()


def gptq(weight: Tensor) -> dict[str, Tensor]:
    """Words down the columns of the transposed weight; zero points less one."""
    codes, scales, zeros = in_groups(weight)
    stored = packed((zeros.T - 1) & 15)
    columns = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    return {"qweight": packed(codes).T.contiguous(), "qzeros": stored, "scales": scales.T.contiguous().half(), "g_idx": columns}


def awq(weight: Tensor) -> dict[str, Tensor]:
    """Words along the rows of the transposed weight, interleaved."""
    codes, scales, zeros = in_groups(weight)
    words = packed(codes.T, AWQ_ORDER), packed(zeros.T, AWQ_ORDER)
    return {"qweight": words[0], "qzeros": words[1], "scales": scales.T.contiguous().half()}


def w4a16(weight: Tensor) -> dict[str, Tensor]:
    """Symmetric groups."""
    groups = weight.view(weight.shape[0], -1, GROUP)
    scales = (groups.abs().amax(-1) / 7.5).half().float().clamp_min(1e-7)
    codes = (groups / scales[..., None]).round().clamp(-8, 7).view(weight.shape).int()
    return {"weight_packed": packed(codes + 8), "weight_scale": scales.half(), "weight_shape": torch.tensor(weight.shape)}


def w8a8(weight: Tensor) -> dict[str, Tensor]:
    """Symmetric rows."""
    scales = weight.abs().amax(-1, keepdim=True) / 127
    return {"weight": (weight / scales).round().to(torch.int8), "weight_scale": scales}


def fp8(high: int, wide: int, name: str) -> Encode:
    """Eight-bit floats, a scale for each block; 0: all there is that way."""

    def encode(weight: Tensor) -> dict[str, Tensor]:
        rows, columns = weight.shape
        blocks = weight.view(rows // (high or rows), high or rows, columns // (wide or columns), wide or columns)
        scales = blocks.abs().amax((1, 3), keepdim=True) / FP8_MOST
        return {"weight": (blocks / scales).view(weight.shape).to(torch.float8_e4m3fn), name: scales.squeeze(3).squeeze(1)}

    return encode


def _compressed(form: str, **weights: object) -> dict[str, object]:
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False, **weights}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
FORMATS = {
    "FP8 in blocks of 128": Format(_FP8, fp8(BLOCK, BLOCK, "weight_scale_inv")),
    "FP8 by row": Format(_compressed("float-quantized", type="float"), fp8(1, 0, "weight_scale")),
    "FP8 by tensor": Format(_compressed("float-quantized", type="float", strategy="tensor"), fp8(0, 0, "weight_scale")),
    "compressed-tensors W8A8": Format(_compressed("int-quantized"), w8a8),
    "compressed-tensors W4A16": Format(_compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP), w4a16),
    "GPTQ int4": Format(_GPTQ, gptq),
    "AWQ int4": Format(_AWQ, awq),
}
GGUF_TYPES = (Ggml.Q8_0, Ggml.Q6_K, Ggml.Q4_K, Ggml.Q4_0)


def write_format(model: Path, name: str, path: Path) -> Path:
    """Write a model in one of `FORMATS`."""
    wanted, tensors = FORMATS[name], dict[str, Tensor]()
    for key, tensor in load_file(model / "model.safetensors").items():
        found = LINEAR.fullmatch(key)
        if found is None:
            tensors[key] = tensor
        else:
            tensors |= {f"{found[1]}.{part}": value.contiguous() for part, value in wanted.encode(tensor.float()).items()}
    path.mkdir()
    config = json.loads((model / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": wanted.config}))
    shutil.copy(model / "tokenizer.json", path)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def write_gguf(model: Path, kind: Ggml, path: Path) -> Path:
    """Write a Llama as GGUF, its linears in blocks of a type."""
    config, arch = json.loads((model / "config.json").read_text()), "llama"
    path.mkdir()
    writer = gguf.GGUFWriter(path / f"model-{kind.name}.gguf", arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for key, tensor in load_file(model / "model.safetensors").items():
        values, short = tensor.float().numpy(), key.split(".")[-2]
        if short in heads:  # as the converter turns them
            values = values.reshape(heads[short], 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        is_linear = LINEAR.fullmatch(key) is not None
        writer.add_tensor(_gguf_name(key), encoded(values, kind) if is_linear else values, raw_dtype=kind if is_linear else Ggml.F32)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return path


def _gguf_name(key: str) -> str:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", key)
    if layer is not None:
        return f"blk.{layer[1]}.{IN_GGUF[layer[2]]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[key]


def encoded(values: np.ndarray, kind: Ggml) -> np.ndarray:
    """Blocks of a type, as bytes; K-quants are not in the package."""
    if kind is Ggml.Q6_K:
        return _q6_k(values.reshape(*values.shape[:-1], -1, 256)).reshape(*values.shape[:-1], -1)
    if kind is Ggml.Q4_K:
        return _q4_k(values.reshape(*values.shape[:-1], -1, 256)).reshape(*values.shape[:-1], -1)
    blocks: np.ndarray = gguf.quants.quantize(values, kind)
    return blocks


def _q6_k(values: np.ndarray) -> np.ndarray:
    """Sixteen parts of 16, each with a scale of eight bits: `d * scale * (q - 32)`."""
    parts = values.reshape(*values.shape[:-1], 16, 16)
    scales = np.abs(parts).max(-1) / 31
    d = np.maximum(scales.max(-1, keepdims=True) / 127, 1e-8).astype(np.float16)
    small = np.clip(np.rint(scales / d.astype(np.float32)), 1, 127)
    codes = np.clip(np.rint(parts / (d.astype(np.float32) * small)[..., None]), -32, 31).astype(np.int64) + 32
    quarters = codes.reshape(*values.shape[:-1], 2, 4, 32)  # of either half
    first, second, third, fourth = (quarters[..., idx, :] for idx in range(4))
    low = np.concatenate((first & 15 | (third & 15) << 4, second & 15 | (fourth & 15) << 4), -1)
    high = first >> 4 | (second >> 4) << 2 | (third >> 4) << 4 | (fourth >> 4) << 6
    lead = values.shape[:-1]
    bytes_of = [low.reshape(*lead, 128), high.reshape(*lead, 64), small.astype(np.int8).view(np.uint8)]
    return np.concatenate([part.astype(np.uint8) for part in bytes_of] + [d.view(np.uint8)], -1)


def _q4_k(values: np.ndarray) -> np.ndarray:
    """Eight parts of 32, each with a scale and a least of six bits: `d * scale * q - dmin * least`."""
    parts = values.reshape(*values.shape[:-1], 8, 32)
    least = np.maximum(-parts.min(-1), 0.0)
    scales = np.maximum((parts.max(-1) + least) / 15, 1e-8)
    d, dmin = ((each.max(-1, keepdims=True) / 63).astype(np.float16) for each in (scales, np.maximum(least, 1e-8)))
    small = np.clip(np.rint(scales / d.astype(np.float32)), 1, 63).astype(np.int64)
    under = np.clip(np.rint(least / dmin.astype(np.float32)), 0, 63).astype(np.int64)
    steps, floors = d.astype(np.float32) * small, dmin.astype(np.float32) * under
    codes = np.clip(np.rint((parts + floors[..., None]) / steps[..., None]), 0, 15).astype(np.int64)
    head = [small[..., :4] | (small[..., 4:] >> 4) << 6, under[..., :4] | (under[..., 4:] >> 4) << 6]
    head.append(small[..., 4:] & 15 | (under[..., 4:] & 15) << 4)
    nibbles = (codes[..., 0::2, :] | codes[..., 1::2, :] << 4).reshape(*values.shape[:-1], 128)
    return np.concatenate([d.view(np.uint8), dmin.view(np.uint8), *(part.astype(np.uint8) for part in (*head, nibbles))], -1)
