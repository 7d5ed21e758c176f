"""What matrices are multiplied in. Weights, adapters' factors, optimizer and logits are float32."""

from __future__ import annotations

from pathlib import Path

import torch

from posttrain.engine.errors import UserError

DTYPES = ("float32", "bfloat16", "auto")


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type named `name`; auto is bfloat16 where the processor multiplies it in units of its
    own (CPUs with AMX, CUDA GPUs from compute capability 8 on), else float32.

    Raises:
        UserError: unknown name, listing the known ones.
    """
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and has_amx()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has matrix units for bfloat16; False where the system cannot say."""
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text()
