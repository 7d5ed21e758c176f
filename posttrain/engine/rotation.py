"""Norm and rotation of query and key heads, in one pass with a backward pass of its own.

Rotary embedding (Su et al. 2021, arXiv:2104.09864) turns pairs of coordinates. Checkpoints pair
coordinate i with i + d/2. Here the pair lies side by side (`interleaved` gives the order in which
a head's rows of the projection are taken), so that a rotation is one complex multiplication.
Scores of queries against keys are the same in any common order of coordinates.

Shapes: N positions, H heads (queries and keys alike), d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.engine.norm import inverse_rms


def interleaved(heads: int, dim: int) -> Tensor:
    """The order of `heads * dim` output rows that puts each rotated pair side by side."""
    pairs = torch.arange(dim).view(2, dim // 2).t().reshape(-1)  # 0, d/2, 1, d/2 + 1, ...
    return (torch.arange(heads)[:, None] * dim + pairs).reshape(-1)


def angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Unit complex numbers `(N, 1, d/2)` that rotate heads at `positions` `(N,)`."""
    turns = positions[:, None].to(frequencies.dtype) * frequencies
    return torch.polar(torch.ones_like(turns), turns)[:, None]


def turn_heads(x: Tensor, weight: Tensor, turns: Tensor, eps: float | None) -> Tensor:
    """Norm (unless `eps` is None), scaling by `weight` `(H, d)`, and rotation of heads.

    Args:
        x: `(N, H, d)` in interleaved order, of any type; computed in the type of `weight`.
        turns: complex `(N, 1, d/2)`.

    Returns:
        `(N, H, d)`, contiguous, in the type of `x`. Differentiable in `x` only.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _TurnHeads.apply(x, weight, turns, eps)
    return compute(x, weight, turns, eps)[0]


def compute(
    x: Tensor, weight: Tensor, turns: Tensor, eps: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result, the rows before `weight`, and their inverse rms."""
    wide = x.to(weight.dtype)
    inverse = None
    if eps is not None:
        inverse = inverse_rms(wide, eps)
        wide = wide * inverse
    return rotate(wide * weight, turns).to(x.dtype), wide, inverse


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)


class _TurnHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turns: Tensor, eps: float | None) -> Tensor:
        y, normed, inverse = compute(x, weight, turns, eps)
        ctx.save_for_backward(*([] if inverse is None else [normed, inverse]), weight, turns)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """A rotation's transpose is the rotation back; the norm's is that of `rms_norm`."""
        *saved, weight, turns = ctx.saved_tensors
        dtype = grads[0].dtype
        g = rotate(grads[0].to(weight.dtype).contiguous(), turns.conj()).mul_(weight)
        if saved:
            normed, inverse = saved
            along = torch.linalg.vecdot(g, normed)[..., None].div_(-g.shape[-1])
            g = g.addcmul_(normed, along).mul_(inverse)
        return g.to(dtype), None, None, None
