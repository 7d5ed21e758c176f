"""A decoder's weights arranged for computing: what the trainer and the sampler run on.

The module tree of `model.py` is what a checkpoint says. Here its layers that read the same input
are one matrix, an adapter's factors are in their place, and the whole is in the type that is
computed in. Trainer and sampler call the same functions on it, so they agree.

Shapes: N positions of any sequences, D hidden, H query heads, K key-value heads, d head dimension.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.engine.lora import Adapter
from posttrain.engine.model import Block, Decoder, RMSNorm
from posttrain.engine.norm import rms_norm
from posttrain.engine.projection import Projection
from posttrain.engine.rotation import angles, interleaved, turn_heads
from posttrain.engine.swiglu import swiglu


class Attend(Protocol):
    """Who may see whom: mixes values `(N, K, d)` into `(N, H, d)` for layer number `layer`."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Layer:
    def __init__(self, block: Block, decoder: Decoder, dtype: torch.dtype) -> None:
        config = decoder.config
        wide, narrow, dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        attention, mlp = block.self_attn, block.mlp
        device = attention.q_proj.weight.device
        orders = [interleaved(n, dim).to(device) for n in (wide, narrow)]
        layers = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = Projection(layers, dtype, [*orders, None])
        self.o = Projection([attention.o_proj], dtype)
        self.gate_up = Projection([mlp.gate_proj, mlp.up_proj], dtype)
        self.down = Projection([mlp.down_proj], dtype)
        self.norm_1 = block.input_layernorm.weight.detach().to(dtype)
        self.norm_2 = block.post_attention_layernorm.weight.detach().to(dtype)
        # The scale of the scores goes into what the query heads are multiplied by anyway.
        self.head_eps: float | None = None  # without norms of queries and keys
        q_scale = k_scale = torch.ones(dim, device=device)
        q_norm, k_norm = attention.q_norm, attention.k_norm
        if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
            self.head_eps = q_norm.eps
            q_scale, k_scale = (norm.weight.detach()[orders[0][:dim]] for norm in (q_norm, k_norm))
        self.head_scale = torch.cat(
            ((q_scale / math.sqrt(dim)).expand(wide, dim), k_scale.expand(narrow, dim))
        ).to(torch.promote_types(dtype, torch.float32))

    @property
    def projections(self) -> list[Projection]:
        return [self.qkv, self.o, self.gate_up, self.down]


class Packed:
    def __init__(
        self,
        decoder: Decoder,
        adapter: Adapter | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.dtype = decoder.config, dtype
        self.device = decoder.lm_head.weight.device
        blocks: Any = decoder.model.layers
        self.layers = [Layer(block, decoder, dtype) for block in blocks]
        self.embedding = decoder.model.embed_tokens.weight.detach()
        self.norm = decoder.model.norm.weight.detach()
        # Logits are in float32 always: bfloat16 has steps of a sixteenth where logits are ten.
        self.head = Projection([decoder.lm_head], self.norm.dtype)
        self.frequencies = decoder.frequencies
        self.refresh(adapter)

    def refresh(self, adapter: Adapter | None) -> None:
        """Take over the present values of an adapter."""
        for layer in self.layers:
            for projection in layer.projections:
                projection.refresh(adapter)
        self.head.refresh(adapter)

    @property
    def owned(self) -> int:
        """Bytes of the matrices that are not shared with the decoder."""
        projections = [p for layer in self.layers for p in layer.projections]
        return sum(projection.owned for projection in [*projections, self.head])

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """States `(N, D)` after the final norm, in float32, for `tokens` and `positions` `(N,)`."""
        config, count = self.config, len(tokens)
        heads = config.num_attention_heads
        keys, dim, eps = config.num_key_value_heads, config.head_dim, config.rms_norm_eps
        x = self.embedding[tokens].to(self.dtype)
        turns = angles(positions, self.frequencies)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(rms_norm(x, layer.norm_1, eps)).view(count, -1, dim)
            qk, v = qkv.split([heads + keys, keys], 1)
            qk = turn_heads(qk, layer.head_scale, turns, layer.head_eps)
            q, k = qk.split([heads, keys], 1)
            mixed = attend(number, q, k, v)
            x = x + layer.o(mixed.reshape(count, -1))
            x = x + layer.down(swiglu(layer.gate_up(rms_norm(x, layer.norm_2, eps))))
        return rms_norm(x.to(self.norm.dtype), self.norm, eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """`(N, D)` to `(N, V)`, in float32."""
        return self.head(hidden)
