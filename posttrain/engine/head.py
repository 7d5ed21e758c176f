"""Log-probabilities of given tokens, with a backward pass that keeps one matrix of logits.

Shapes: M positions, D hidden, V vocabulary, K targets a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from posttrain.engine.projection import Projection, factor_gradients

CELLS = 2**24  # logits held at once, in float32: 64 MiB


def target_logprobs(head: Projection, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities, float32 `(M, K)`, of `targets` `(M, K)` after `hidden` `(M, D)`.

    At most CELLS logits exist at a time; beyond that the backward pass computes them again.
    """
    factors = [factor for pair in head.pairs if pair is not None for factor in pair]

    def piece(hidden: Tensor, targets: Tensor) -> Tensor:
        return _TargetLogprobs.apply(head, hidden, targets, *factors)

    size = max(1, CELLS // head.weight.shape[0])
    if len(hidden) <= size:
        return piece(hidden, targets)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([piece(h, t) for h, t in parts])
    return torch.cat([checkpoint(piece, h, t, use_reentrant=False) for h, t in parts])


def normaliser(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of each row of `logits` `(M, V)`, kept as `(M, 1)`, given their softmax.

    The greatest probability is exp(greatest logit - normaliser): two reductions in place of the
    exponentials that logsumexp would compute a second time.
    """
    return logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Projection, hidden: Tensor, targets: Tensor, *factors: Tensor
    ) -> Tensor:
        logits = F.linear(hidden, head.weight, head.bias)
        probabilities = logits.softmax(-1)
        ctx.head, ctx.weight = head, head.weight
        ctx.save_for_backward(hidden, targets, probabilities)
        return logits.gather(-1, targets) - normaliser(logits, probabilities)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """d log p(target) / d logits = one-hot(target) - p, summed over targets with weights."""
        hidden, targets, probabilities = ctx.saved_tensors
        head: Projection = ctx.head
        dy = probabilities * -grads[0].sum(-1, keepdim=True)
        dy.scatter_add_(-1, targets, grads[0])
        dx = dy @ ctx.weight if ctx.needs_input_grad[1] else None
        a = [pair[0].detach() for pair in head.pairs if pair is not None]
        inner = hidden @ torch.cat(a).t() if a else None
        return None, dx, None, *factor_gradients(head, hidden, dy, inner, None)
