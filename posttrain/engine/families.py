"""The decoder families: which Hugging Face configs this engine computes, and which it refuses.

They share one architecture (pre-norm, rotary positions, grouped-query attention, SwiGLU) and differ
in biases, in norms of queries and keys, and in what holds where a config is silent. What is said
here is what `transformers` computes for the same `config.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Raw = dict[str, Any]  # a parsed config.json


def never(raw: Raw) -> int | None:
    return None


def always(raw: Raw) -> int | None:
    return raw.get("sliding_window", 4096)


def switched(raw: Raw) -> int | None:
    """Qwen: only with `use_sliding_window`, and in the layers from `max_window_layers` on."""
    beyond = (raw.get("max_window_layers", 28) or 0) >= raw["num_hidden_layers"]
    if not raw.get("use_sliding_window") or (beyond and not raw.get("layer_types")):
        return None
    return raw.get("sliding_window", 4096)


@dataclass(frozen=True)
class Family:
    """What distinguishes one `model_type` from the others.

    Args:
        architecture: the class of `transformers` that computes the same function.
        qk_norm: queries and keys of each head are normalised.
        qkv_bias: the query, key and value layers have biases, whatever the config says.
        reads_attention_bias: the config's `attention_bias` gives biases to all of attention.
        head_dim: where the config does not say; None is hidden_size / num_attention_heads.
        key_value_heads: where the config does not say; None is as many as attention heads.
        window: how far back a position attends, in positions; None is all the way.
    """

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    reads_attention_bias: bool = False
    head_dim: int | None = None
    key_value_heads: int | None = None
    window: Callable[[Raw], int | None] = never


FAMILIES = {
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, key_value_heads=32, window=switched),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        qk_norm=True,
        reads_attention_bias=True,
        head_dim=128,
        key_value_heads=32,
        window=switched,
    ),
    "llama": Family("LlamaForCausalLM", reads_attention_bias=True),
    "mistral": Family("MistralForCausalLM", key_value_heads=8, window=always),
}

NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)

# Fields that change what is computed, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False, None),
    "is_causal": (True, None),
    "use_bidirectional_attention": (False, None),
    "no_rope_layers": (None, []),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "attention_multiplier": (None,),
    "logits_scaling": (1.0, None),
    "logit_scale": (1.0, None),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "quantization_config": (None,),
}


def family_of(raw: Raw) -> Family:
    """The family of a config that is computed as `transformers` does.

    Raises:
        ValueError: an unknown family, or a field that would be computed wrongly; names it and
            what is known.
    """
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type {kind!r} is not supported; known: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for name in NEEDED:
        if not isinstance(raw.get(name), int) or raw[name] < 1:
            raise ValueError(
                f"this {kind} config has {name} {shown(raw.get(name))}, not a positive integer"
            )
    for name, neutral in NEUTRAL.items():
        if name in raw and raw[name] not in neutral:
            known = " or ".join(json_name(value) for value in neutral)
            raise ValueError(
                f"this {kind} config has {name} {shown(raw[name])}, which is not supported; "
                f"known: {known}"
            )
    classes = raw.get("architectures") or [family.architecture]
    if family.architecture not in classes:
        raise ValueError(
            f"this {kind} config is of the architecture {', '.join(classes)}, which is not "
            f"supported; known: {family.architecture}"
        )
    if "AutoModelForCausalLM" in (raw.get("auto_map") or {}):
        raise ValueError(
            f"this {kind} config has auto_map, code of its own, which is never run; known are "
            f"configs that need only {family.architecture} of transformers"
        )
    check_window(raw, family)
    return family


def check_window(raw: Raw, family: Family) -> None:
    """Refuse a sliding window that is shorter than the context."""
    window, positions = family.window(raw), raw["max_position_embeddings"]
    wide = window is None or window >= positions
    layers = set(raw.get("layer_types") or ()) - {"full_attention"}
    if not wide:
        raise ValueError(
            f"this {raw['model_type']} config has sliding_window {window}, shorter than its "
            f"{positions} positions, which is not supported; known: null or at least "
            "max_position_embeddings"
        )
    if layers - {"sliding_attention"} or (layers and window is None):
        raise ValueError(
            f"this {raw['model_type']} config has layer_types {', '.join(sorted(layers))}, which "
            "is not supported; known: full_attention"
        )


def shown(value: Any) -> str:
    text = json_name(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def json_name(value: Any) -> str:
    """A value as it stands in a config.json."""
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))
