"""The Llama architecture, small, with the parameter names of Hugging Face's `LlamaForCausalLM`."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, slots=True)
class ModelShape:
    """The shape of the model; the field names are those of a Hugging Face `config.json`."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


def rope_tables(shape: ModelShape, num_positions: int) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of RoPE, each `[num_positions, head_dim] f32`, halves repeated as in Llama."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    frequencies = 1.0 / shape.rope_theta**exponents
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns `x` `[batch, heads, positions, head_dim]` turned by its positions, in the dtype of `x`."""
    low, high = x.float().chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in f32 and given back in the dtype of its input."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` over its root mean square, times the weight."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with RoPE."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        query_size = shape.num_attention_heads * shape.head_dim
        kv_size = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns the attention output for `x` `[batch, positions, hidden]`."""
        shape, (batch, positions, _) = self.shape, x.shape
        # One product for the three projections: wide products run nearer to the peak of a CPU than narrow ones.
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)).to(x.dtype)
        heads = F.linear(x, weight).view(batch, positions, -1, shape.head_dim).transpose(1, 2)
        num_q, num_kv = shape.num_attention_heads, shape.num_key_value_heads
        q, k, v = torch.split(heads, [num_q, num_kv, num_kv], dim=1)
        k = rotate(k, cos, sin).repeat_interleave(num_q // num_kv, dim=1)
        v = v.repeat_interleave(num_q // num_kv, dim=1)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape(batch, positions, -1), self.o_proj.weight.to(x.dtype))


class Mlp(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `down(silu(gate(x)) * up(x))`."""
        weight = torch.cat((self.gate_proj.weight, self.up_proj.weight)).to(x.dtype)
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight.to(x.dtype))


class Layer(nn.Module):
    """One transformer layer: attention and feed-forward, each behind its norm and added to the stream."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns the stream after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers and last norm (Hugging Face's `model.` prefix)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)


class Llama(nn.Module):
    """A Llama language model with tied embeddings; parameters are f32, the work is done in `compute_dtype`."""

    def __init__(self, shape: ModelShape, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.model = Decoder(shape)
        cos, sin = rope_tables(shape, shape.max_position_embeddings)
        self.cos, self.sin = nn.Buffer(cos, persistent=False), nn.Buffer(sin, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """Draws the first weights: 0.02 everywhere, less on what adds to the stream so that its size keeps."""
        shrink = 1.0 / math.sqrt(2 * self.shape.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 * (shrink if is_output else 1.0))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Returns the logits `[batch, positions, vocab] compute_dtype` that follow each of `token_ids`."""
        cos, sin = self.cos[: token_ids.shape[1]], self.sin[: token_ids.shape[1]]
        x = self.model.embed_tokens(token_ids).to(self.compute_dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight.to(self.compute_dtype))

    def loss(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean cross entropy in nats of `targets` (same shape as `token_ids`) under the model."""
        logits = self.forward(token_ids)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
