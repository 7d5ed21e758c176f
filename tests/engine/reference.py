"""Plain computations that the engine is compared with."""

from __future__ import annotations

import torch
from torch import nn

from posttrain.engine.lora import Adapter
from posttrain.engine.model import Decoder, assign


@torch.no_grad()
def merged(decoder: Decoder, adapter: Adapter) -> Decoder:
    """A decoder with the adapter added into its weights, W + scale * B A; the rest is shared."""
    copy = Decoder.empty(decoder.config)
    for name, parameter in decoder.named_parameters():
        assign(copy, name, parameter)
    copy.lm_head.weight = decoder.lm_head.weight  # named once when it is tied
    for path, (a, b) in adapter.factors.items():
        weight = decoder.get_parameter(f"{path}.weight")
        changed = nn.Parameter(weight + adapter.scale * b @ a, requires_grad=False)
        assign(copy, f"{path}.weight", changed)
    copy.frequencies = decoder.frequencies
    return copy
