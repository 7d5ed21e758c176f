"""An adapter as PEFT stores it, to be used outside of this engine."""

from __future__ import annotations

import json

from torch import Tensor

from posttrain.engine.lora import Adapter


def peft_files(adapter: Adapter, base_model: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of `adapter_model.safetensors`, and the text of `adapter_config.json`.

    Args:
        base_model: hub id or directory of the model that the adapter belongs to.
    """
    tensors = {
        f"base_model.model.{path}.lora_{letter}.weight": factor.detach().contiguous()
        for path, pair in adapter.factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.config.rank,
        "lora_alpha": round(adapter.scale * adapter.config.rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
        "target_modules": sorted({path.rpartition(".")[2] for path in adapter.factors}),
    }
    return tensors, json.dumps(config, indent=2) + "\n"
