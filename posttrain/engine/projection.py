"""Linear layers that read the same input, computed as one, with their low-rank adapters.

Shapes: N positions, I inputs, O outputs of all layers together, R the ranks of all adapters
together, r the rank of one.

In float32 the update is added into the weight: y = x (W + s B A)^T costs what the frozen layer
costs, in training as in sampling. In bfloat16 that would lose every update below a 256th of the
weight it is added to, so the factors stay apart and ride along: y = [x, x A^T] [W, s B]^T is one
product too. Gradients are those of the factors in both cases; no gradient of W is ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from posttrain.engine.lora import Adapter
from posttrain.engine.model import Linear

# Products of fewer rows than this may sum in another order; with as many or more, a row's result
# does not depend on how many others there are (float32, MKL; tests/engine/test_steady.py).
STEADY = 16


class Projection:
    """One or several linear layers of a decoder, side by side."""

    def __init__(
        self, layers: Sequence[Linear], dtype: torch.dtype, orders: Sequence[Tensor | None] = ()
    ) -> None:
        """`orders` gives for each layer the order in which its outputs are wanted."""
        self.layers = list(layers)
        self.orders = list(orders) or [None] * len(self.layers)
        self.dtype = dtype
        self.sizes = [layer.out_features for layer in self.layers]
        biases = [getattr(layer, "bias", None) for layer in self.layers]
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            filled = [
                layer.weight.new_zeros(layer.out_features) if bias is None else bias.detach()
                for layer, bias in zip(self.layers, biases, strict=True)
            ]
            parts = [ordered(b, o) for b, o in zip(filled, self.orders, strict=True)]
            self.bias = torch.cat(parts).to(dtype)
        self.weight = torch.empty(0)  # (O, I), or (O, I + R) with factors apart
        self.down: Tensor | None = None  # (R, I), the factors A, where they are apart
        self.scale = 1.0
        self.pairs: list[tuple[Tensor, Tensor] | None] = []

    @torch.no_grad()
    def refresh(self, adapter: Adapter | None) -> None:
        """Take over the present values of the adapter's factors."""
        found = [adapter.factors.get(layer.path) if adapter else None for layer in self.layers]
        self.scale = adapter.scale if adapter else 1.0
        self.pairs = found
        if self.dtype == torch.bfloat16 and any(pair is not None for pair in found):
            self.place_apart()
        else:
            self.merge()

    def merge(self) -> None:
        self.down = None
        if len(self.layers) == 1 and self.pairs[0] is None and self.orders[0] is None:
            self.weight = self.layers[0].weight.detach().to(self.dtype)
            return
        columns = self.layers[0].in_features
        like = self.layers[0].weight
        full = torch.empty(sum(self.sizes), columns, dtype=like.dtype, device=like.device)
        for layer, pair, order, part in self.parts(full):
            weight = ordered(layer.weight.detach(), order)
            if pair is None:
                part.copy_(weight)
            else:
                b = ordered(pair[1].detach(), order)
                torch.addmm(weight, b, pair[0].detach(), alpha=self.scale, out=part)
        self.weight = full.to(self.dtype)

    def place_apart(self) -> None:
        columns = self.layers[0].in_features
        factors = [pair for pair in self.pairs if pair is not None]
        ranks = sum(len(a) for a, _ in factors)
        self.down = torch.cat([a.detach() for a, _ in factors]).to(self.dtype)
        if self.weight.shape != (sum(self.sizes), columns + ranks):
            like = self.layers[0].weight
            self.weight = torch.zeros(
                sum(self.sizes), columns + ranks, dtype=self.dtype, device=like.device
            )
            for layer, _, order, part in self.parts(self.weight):
                part[:, :columns] = ordered(layer.weight.detach(), order)
        start = columns
        for _, pair, order, part in self.parts(self.weight):
            if pair is not None:
                end = start + len(pair[0])
                part[:, start:end] = ordered(pair[1].detach(), order) * self.scale
                start = end

    @property
    def owned(self) -> int:
        """Bytes of the weights that are not the first layer's own (biases left aside)."""
        own = self.layers[0].weight.untyped_storage().data_ptr()
        tensors = [self.weight] if self.down is None else [self.weight, self.down]
        return sum(t.nbytes for t in tensors if t.untyped_storage().data_ptr() != own)

    def parts(self, full: Tensor) -> Any:
        """(layer, its factors, its order, its rows of `full`) for each layer."""
        return zip(self.layers, self.pairs, self.orders, full.split(self.sizes), strict=True)

    def __call__(self, x: Tensor) -> Tensor:
        """`(N, I)` to `(N, O)`; differentiable in `x` and in the adapter's factors."""
        factors = [factor for pair in self.pairs if pair is not None for factor in pair]
        if torch.is_grad_enabled() and (x.requires_grad or any(f.requires_grad for f in factors)):
            return _Project.apply(self, x, *factors)
        if len(x) < STEADY:
            few = torch.cat((x, x.new_zeros(STEADY - len(x), x.shape[1])))
            return F.linear(self.widened(few), self.weight, self.bias)[: len(x)]
        return F.linear(self.widened(x), self.weight, self.bias)

    def widened(self, x: Tensor) -> Tensor:
        """The input with its products with A beside it, where the factors are apart."""
        return x if self.down is None else torch.cat((x, F.linear(x, self.down)), -1)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projection: Projection, x: Tensor, *factors: Tensor) -> Tensor:
        wide = projection.widened(x)
        ctx.projection, ctx.weight, ctx.columns = projection, projection.weight, x.shape[1]
        ctx.save_for_backward(wide)
        return F.linear(wide, projection.weight, projection.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """With y = x (W + s B A)^T: dx = dy W + s dy B A, dA = s (dy B)^T x, dB = s dy^T x A^T."""
        (wide,), dy = ctx.saved_tensors, grads[0]
        projection: Projection = ctx.projection
        pairs = [pair for pair in projection.pairs if pair is not None]
        x = wide[:, : ctx.columns]
        dx = inner = outer = None
        if projection.down is not None:
            back = dy @ ctx.weight
            outer = back[:, ctx.columns :]  # s dy B
            if ctx.needs_input_grad[1]:
                dx = torch.addmm(back[:, : ctx.columns], outer, projection.down)
            inner = wide[:, ctx.columns :]  # x A^T
        else:
            if ctx.needs_input_grad[1]:
                dx = dy @ ctx.weight
            if pairs:
                inner = x @ torch.cat([a.detach() for a, _ in pairs]).t().to(x.dtype)
        return None, dx, *factor_gradients(projection, x, dy, inner, outer)


def factor_gradients(
    projection: Projection, x: Tensor, dy: Tensor, inner: Tensor | None, outer: Tensor | None
) -> list[Tensor]:
    """dA, dB of each adapted layer in turn, in float32.

    Args:
        inner: x A^T `(N, R)`.
        outer: s dy B `(N, R)`, or None to compute it.
    """
    if inner is None:
        return []
    scale, lefts, ups, start = projection.scale, [], [], 0
    # Every layer's gradient against every layer's x A^T: more than is needed, yet one product of
    # whole rows is faster than several of strips.
    crossed = (inner.t() @ dy).split(projection.sizes, -1)  # (R, O of each)
    parts = dy.split(projection.sizes, -1)
    for pair, order, part, cross in zip(
        projection.pairs, projection.orders, parts, crossed, strict=True
    ):
        if pair is None:
            continue
        a, b = pair
        if outer is None:
            lefts.append(part @ (ordered(b.detach(), order) * scale).to(dy.dtype))
        # Contiguous: the fused optimizer reads memory in order, whatever the strides.
        up = (cross[start : start + len(a)].to(b.dtype) * scale).t().contiguous()
        if order is not None:
            up = torch.empty_like(up).index_copy_(0, order, up)
        ups.append(up)
        start += len(a)
    outer = torch.cat(lefts, -1) if outer is None else outer
    downs = (outer.t() @ x).to(ups[0].dtype).split([up.shape[1] for up in ups])
    return [factor for pair in zip(downs, ups, strict=True) for factor in pair]


def ordered(rows: Tensor, order: Tensor | None) -> Tensor:
    return rows if order is None else rows[order]
