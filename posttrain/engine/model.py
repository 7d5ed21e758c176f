"""A lean decoder: Qwen2, Qwen3, Llama and Mistral as Hugging Face stores them.

Attribute names are those of the checkpoint, so loading assigns by name. The same module
serves full-parameter pretraining, and holds the weights of what `packed.py` computes on.

Shapes: B sequences, T positions, D hidden, H query heads, K key-value heads, d head dimension,
V vocabulary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from posttrain.engine.config import DecoderConfig
from posttrain.engine.lora import Adapter
from posttrain.engine.rope import frequencies
from posttrain.engine.shards import check_weights, read_weights


class Linear(nn.Linear):
    """A linear layer that adds the low-rank update of an adapter, if there is one."""

    def __init__(self, path: str, columns: int, rows: int, bias: bool = False) -> None:
        super().__init__(columns, rows, bias=bias)
        self.path = path

    def forward(self, x: Tensor, adapter: Adapter | None = None) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        pair = adapter.factors.get(self.path) if adapter is not None else None
        if adapter is not None and pair is not None:
            # Scaled where it is narrow, and added within the product: a separate pass over y
            # for either costs as much as the product itself.
            inner = (F.linear(x, pair[0]) * adapter.scale).flatten(0, -2)
            y = torch.addmm(y.flatten(0, -2), inner, pair[1].t()).view(y.shape)
        return y


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention; biases, and norms of queries and keys, where the family has them."""

    def __init__(self, path: str, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.group = config.num_attention_heads // config.num_key_value_heads
        wide = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(f"{path}.q_proj", config.hidden_size, wide, config.qkv_bias)
        self.k_proj = Linear(f"{path}.k_proj", config.hidden_size, narrow, config.qkv_bias)
        self.v_proj = Linear(f"{path}.v_proj", config.hidden_size, narrow, config.qkv_bias)
        self.o_proj = Linear(f"{path}.o_proj", wide, config.hidden_size, config.output_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor,
        adapter: Adapter | None,
    ) -> Tensor:
        rows, length, _ = x.shape
        heads = (rows, length, -1, self.head_dim)
        q = self.q_norm(self.q_proj(x, adapter).view(heads)).transpose(1, 2)  # (B, H, T, d)
        k = self.k_norm(self.k_proj(x, adapter).view(heads)).transpose(1, 2)  # (B, K, T, d)
        v = self.v_proj(x, adapter).view(heads).transpose(1, 2)
        q, k = rotate(q, rotary), rotate(k, rotary)
        # Explicit softmax: on CPUs its backward is several times faster than the fused kernel's
        # at these head sizes. Query heads of a group are stacked along the query axis, so that
        # their shared keys are neither copied nor expanded.
        q = q.reshape(rows, -1, self.group * length, self.head_dim)  # (B, K, group*T, d)
        scores = (q * (1.0 / math.sqrt(self.head_dim))) @ k.transpose(-1, -2)
        scores = scores.view(rows, -1, self.group, length, bias.shape[-1]) + bias
        weights = (
            scores.softmax(-1, dtype=torch.float32)
            .to(v.dtype)
            .view(rows, -1, self.group * length, bias.shape[-1])
        )
        mixed = (weights @ v).view(rows, -1, length, self.head_dim).transpose(1, 2)
        return self.o_proj(mixed.reshape(rows, length, -1), adapter)


class MLP(nn.Module):
    """Gated feed-forward layer (SwiGLU)."""

    def __init__(self, path: str, config: DecoderConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(f"{path}.gate_proj", width, inner)
        self.up_proj = Linear(f"{path}.up_proj", width, inner)
        self.down_proj = Linear(f"{path}.down_proj", inner, width)

    def forward(self, x: Tensor, adapter: Adapter | None) -> Tensor:
        gated = F.silu(self.gate_proj(x, adapter)) * self.up_proj(x, adapter)
        return self.down_proj(gated, adapter)


class Block(nn.Module):
    def __init__(self, path: str, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(f"{path}.self_attn", config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(f"{path}.mlp", config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor,
        adapter: Adapter | None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, bias, adapter)
        return x + self.mlp(self.post_attention_layernorm(x), adapter)


class Trunk(nn.Module):
    """Everything below the unembedding: the checkpoint's `model.` part."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # drawing "into" no storage makes torch import for over a second
            nn.init.normal_(weight)
        self.embed_tokens = nn.Embedding.from_pretrained(weight, freeze=False)
        self.layers = nn.ModuleList(
            Block(f"model.layers.{i}", config) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """Token ids to hidden states to logits."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = Linear("lm_head", config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        found = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.register_buffer("frequencies", found, persistent=False)
        self.frequencies: Tensor

    def forward(self, tokens: Tensor, *, adapter: Adapter | None = None) -> Tensor:
        """Hidden states `(B, T, D)` after the final norm, for `tokens` `(B, T)`.

        Rows start at position 0 and attend causally; padding belongs on the right, where
        causality keeps it out of every real position.
        """
        x = self.model.embed_tokens(tokens)
        at = torch.arange(tokens.shape[1], device=tokens.device)
        bias = torch.zeros(len(at), len(at), dtype=x.dtype, device=x.device)
        bias.masked_fill_(at[:, None] < at[None, :], float("-inf"))
        angles = at[:, None].float() * self.frequencies  # (T, d/2)
        angles = torch.cat((angles, angles), -1)
        rotary = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        for block in self.model.layers:
            x = block(x, rotary, bias, adapter)
        return self.model.norm(x)

    def logits(self, hidden: Tensor, adapter: Adapter | None = None) -> Tensor:
        """`(..., D)` to `(..., V)`."""
        return self.lm_head(hidden, adapter)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """`(out, in)` of every layer that LoRA can adapt, by path."""
        layers = (m for m in self.modules() if isinstance(m, Linear))
        return {m.path: (m.out_features, m.in_features) for m in layers}

    @classmethod
    def empty(cls, config: DecoderConfig) -> Decoder:
        """A decoder without storage, whose parameters are about to be assigned."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Decoder:
        """Read a Hugging Face directory, one tensor after the other: `config.json`, safetensors.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError: the config is not supported, or the weights do not fit it.
        """
        directory, device = Path(directory), torch.device(device)
        decoder = cls.check(directory)
        tied = decoder.config.tie_word_embeddings
        for name, tensor in read_weights(directory, tied=tied, dtype=dtype, device=device):
            assign(decoder, name, nn.Parameter(tensor, requires_grad=False))
        if tied:
            decoder.lm_head.weight = decoder.model.embed_tokens.weight
        decoder.frequencies = decoder.frequencies.to(device)
        return decoder.eval()

    @classmethod
    def check(cls, directory: Path) -> Decoder:
        """An empty decoder of a directory's shape. Raises, within milliseconds, what `load` does
        where the directory cannot be loaded."""
        decoder = cls.empty(DecoderConfig.from_dir(directory))
        shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
        check_weights(directory, shapes, tied=decoder.config.tie_word_embeddings)
        return decoder

    def save(self, directory: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write `config.json` and `model.safetensors` as `transformers` reads them."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {n: t.detach().to(dtype).contiguous() for n, t in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del state["lm_head.weight"]
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(self.config.to_hf(), indent=2) + "\n")


def assign(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Set the parameter at a dotted name, sharing its storage."""
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, parameter)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split layout."""
    cos, sin = rotary
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
