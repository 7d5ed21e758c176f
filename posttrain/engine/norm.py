"""Root-mean-square norm with a backward pass of its own. Shapes: N rows of width D."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

    Differentiable in `x` `(N, D)` only: the weight `(D,)` is frozen. The sum of squares is taken
    in float32 at least, whatever the type of `x`.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _RMSNorm.apply(x, weight, eps)
    return (x * inverse_rms(x, eps).to(x.dtype)).mul_(weight)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis, which is kept: `(..., 1)`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # vector_norm is the one reduction whose kernel reads bfloat16 and sums in float32 at once.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """Autograd would record, save and pass over the rows five times in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse.to(x.dtype)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """dx = r (g - x r^2 <g, x> / D), with g = weight * dy and r the inverse rms."""
        x, weight, inverse = ctx.saved_tensors
        g = grads[0] * weight
        along = torch.linalg.vecdot(g, x)[:, None].to(inverse.dtype)
        back = along * inverse.pow(3) / -x.shape[-1]
        return g.mul_(inverse.to(x.dtype)).addcmul_(x, back.to(x.dtype)), None, None
