"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W x + scale * B (A x)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA = 32.0  # scale = ALPHA / rank, the default that Tinker-compatible servers assume


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices are adapted, and how. The fields are those of the Tinker API."""

    rank: int = 32
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def trains(self, path: str) -> bool:
        """Whether the linear layer at `path` (e.g. `model.layers.0.mlp.up_proj`) is adapted."""
        if path == "lm_head":
            return self.train_unembed
        return self.train_attn if ".self_attn." in path else self.train_mlp


class Adapter:
    """The trainable factors of one training client.

    `factors[path] = (A, B)` with A `(rank, in)` and B `(out, rank)`. B starts at zero, so a new
    adapter leaves the model as it is.
    """

    def __init__(self, factors: dict[str, tuple[Tensor, Tensor]], config: LoraConfig) -> None:
        self.factors = factors
        self.config = config
        self.scale = ALPHA / config.rank

    @classmethod
    def fresh(cls, shapes: dict[str, tuple[int, int]], config: LoraConfig) -> Adapter:
        """New factors for linear layers of the given `(out, in)` shapes.

        A is drawn uniformly with variance 1 / (3 in), as PEFT does, from `config.seed` alone.
        """
        generator = torch.Generator().manual_seed(config.seed)
        factors = {}
        for path, (rows, columns) in shapes.items():
            if config.trains(path):
                bound = 1.0 / math.sqrt(columns)
                a = torch.empty(config.rank, columns).uniform_(-bound, bound, generator=generator)
                factors[path] = (
                    a.requires_grad_(),
                    torch.zeros(rows, config.rank).requires_grad_(),
                )
        return cls(factors, config)

    @classmethod
    def of_state(cls, state: dict[str, Tensor], config: LoraConfig) -> Adapter:
        """The frozen adapter that `state()` was taken of."""
        paths = [name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")]
        factors = {path: (state[f"{path}.lora_A"], state[f"{path}.lora_B"]) for path in paths}
        return cls(factors, config)

    def delta(self, path: str) -> Tensor | None:
        """scale * B A, the `(out, in)` update of one matrix, or None where it is not adapted."""
        pair = self.factors.get(path)
        return None if pair is None else (pair[1] @ pair[0]).detach() * self.scale

    def parameters(self) -> list[Tensor]:
        return [factor for pair in self.factors.values() for factor in pair]

    def state(self) -> dict[str, Tensor]:
        """Flat tensors for safetensors, keyed `<path>.lora_A` and `<path>.lora_B`."""
        return {
            f"{path}.lora_{letter}": factor.detach()
            for path, pair in self.factors.items()
            for letter, factor in zip("AB", pair, strict=True)
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy the values of `state()` of an adapter of the same shape.

        Raises:
            ValueError: names or shapes differ.
        """
        own = self.state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise ValueError(f"checkpoint adapts other matrices: {odd[0]} and {len(odd) - 1} more")
        for name, factor in own.items():  # all of them first: nothing is loaded by half
            if factor.shape != state[name].shape:
                raise ValueError(
                    f"{name} is {tuple(state[name].shape)} in the checkpoint, "
                    f"{tuple(factor.shape)} here"
                )
        for name, factor in own.items():
            factor.copy_(state[name])
