"""Frequencies of the rotary position embedding, plain or scaled to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KNOWN = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies are stretched; the fields are those of Hugging Face's `rope_scaling`.

    `linear` divides all of them by `factor` (Chen et al. 2023, arXiv:2306.15595). `llama3` divides
    those whose wavelength is longer than original / low_freq_factor positions, keeps those shorter
    than original / high_freq_factor, and blends in between (Llama 3.1, arXiv:2407.21783).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192  # positions of the pretraining

    def __post_init__(self) -> None:
        if self.rope_type not in KNOWN[1:]:
            raise ValueError(
                f"rope scaling of type {self.rope_type!r} is not supported; "
                f"known: {', '.join(KNOWN)}"
            )
        if not self.factor > 0:
            raise ValueError(f"rope scaling has the factor {self.factor}, which is not positive")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope scaling has low_freq_factor {self.low_freq_factor} and high_freq_factor "
                f"{self.high_freq_factor}; 0 < low < high is needed"
            )

    @classmethod
    def from_hf(cls, rope: dict[str, Any], positions: int) -> RopeScaling | None:
        """Of a config's `rope_scaling` or `rope_parameters`; None where nothing is scaled.

        Args:
            positions: those of the pretraining where `rope` does not name them.

        Raises:
            ValueError: a type that is not known, or a number that is missing or impossible.
        """
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return None
        needed = {"llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(
            kind, ("factor",)
        )
        if kind not in KNOWN:
            return cls(kind, 1.0)  # refuses
        for name in needed:
            if not isinstance(rope.get(name), int | float):
                raise ValueError(f"rope scaling of type {kind!r} needs the number {name!r}")
        numbers = {name: float(rope[name]) for name in needed}
        original = int(rope.get("original_max_position_embeddings") or positions)
        return cls(kind, **numbers, original_max_position_embeddings=original)

    def to_hf(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rope_type": self.rope_type, "factor": self.factor}
        if self.rope_type == "llama3":
            found["low_freq_factor"] = self.low_freq_factor
            found["high_freq_factor"] = self.high_freq_factor
            found["original_max_position_embeddings"] = self.original_max_position_embeddings
        return found


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Radians per position of each pair of channels, float32 `(head_dim / 2,)` on the CPU.

    In the order of operations that `transformers` has, so that they are the same bits: at position
    100,000 the last bit of a frequency is a hundredth of a radian.
    """
    # On the CPU also where everything else is made on the meta device: there, arange takes a second
    # when it is first called, and the numbers are wanted.
    half = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    plain = 1.0 / (theta**half)
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    wavelengths = 2 * math.pi / plain  # positions
    blend = (original / wavelengths - low) / (high - low)
    between = (1 - blend) * plain / scaling.factor + blend * plain
    slow, fast = wavelengths > original / low, wavelengths < original / high
    return torch.where(slow, plain / scaling.factor, torch.where(fast, plain, between))
