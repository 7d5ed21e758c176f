"""The shape of a decoder, read from a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.engine.families import FAMILIES, Family, family_of
from posttrain.engine.rope import RopeScaling


@dataclass(frozen=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    model_type: str = "qwen3"
    attention_bias: bool = False  # as the config has it; families differ in what they make of it

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def qk_norm(self) -> bool:
        return self.family.qk_norm

    @property
    def qkv_bias(self) -> bool:
        return self.family.qkv_bias or self.output_bias

    @property
    def output_bias(self) -> bool:
        return self.family.reads_attention_bias and self.attention_bias

    @property
    def cache_cells(self) -> int:
        """Numbers that the key-value cache holds for one position of one sequence."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @classmethod
    def from_dir(cls, directory: str | Path) -> DecoderConfig:
        """Read `directory/config.json`.

        Raises:
            FileNotFoundError: there is no config.json.
            ValueError: the file describes a decoder that this engine does not implement.
        """
        path = Path(directory) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: not a Hugging Face model directory")
        try:
            raw = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ValueError(f"{path} holds no JSON object: not a Hugging Face config")
        try:
            return cls.from_hf(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{path} has a field of an unexpected type: {error}") from None

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> DecoderConfig:
        """Translate the keys of a Hugging Face config, with the defaults of its family.

        Raises:
            ValueError: names what would be computed wrongly, and lists what is known.
        """
        family = family_of(raw)
        heads, positions = raw["num_attention_heads"], raw["max_position_embeddings"]
        rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
        for name in (key for key, value in rope.items() if isinstance(value, dict)):
            raise ValueError(f"rope_parameters of {name} alone are not supported; known: one set")
        if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise ValueError("rope_parameters with partial_rotary_factor are not supported")
        pretrained = raw.get("original_max_position_embeddings")
        if pretrained:
            rope = rope | {"original_max_position_embeddings": pretrained}
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads", family.key_value_heads) or heads,
            head_dim=raw.get("head_dim", family.head_dim) or raw["hidden_size"] // heads,
            max_position_embeddings=positions,
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0),
            rope_scaling=RopeScaling.from_hf(rope, positions),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            model_type=raw["model_type"],
            attention_bias=bool(raw.get("attention_bias")),
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json under which `transformers` computes the same function."""
        scaling = self.rope_scaling.to_hf() if self.rope_scaling else {"rope_type": "default"}
        return {
            "architectures": [self.family.architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_parameters": {**scaling, "rope_theta": self.rope_theta},
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "torch_dtype": "bfloat16",
        } | ({"sliding_window": None} if self.model_type == "mistral" else {})
