"""Causal attention over a forest of sequences.

Explicit softmax: on CPUs its backward pass is several times faster than the fused kernel's at
small head sizes. Query heads that share keys are stacked along the query axis, and so are the
leaves of a root when they look at it: their keys are neither copied nor expanded.

Shapes: B rows of width T, H query heads, K key-value heads, d head dimension, E = H / K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.engine.forest import Forest, Rows

BLOCK = 64  # queries at a time: keys after the last of them are not looked at


class ForestAttention:
    """The mixing function of every layer for one forest. Queries come scaled by 1 / sqrt(d)."""

    def __init__(self, forest: Forest, dtype: torch.dtype) -> None:
        self.forest = forest
        device = forest.tokens.device
        self.masks = [causal(w, dtype, device) for w in (forest.roots.width, self.leaf_width)]
        self.beyond: Tensor | None = None  # (R, 1, P): -inf where a root is shorter than the widest
        if forest.leaves is not None and forest.roots.into is not None:
            at = torch.arange(forest.roots.width, device=device)
            seen = at < forest.roots.lengths[:, None]
            self.beyond = torch.zeros(seen.shape, dtype=dtype, device=device)
            self.beyond = self.beyond.masked_fill_(~seen, float("-inf"))[:, None, :]

    @property
    def leaf_width(self) -> int:
        return self.forest.leaves.width if self.forest.leaves is not None else 0

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        roots, leaves = self.forest.roots, self.forest.leaves
        rows = q.shape[1] // k.shape[1]
        keys, values = by_head(roots.pad(k)), by_head(roots.pad(v))
        mixed = roots.unpad(self.roots(roots.pad(q), keys, values, rows))
        if leaves is None:
            return mixed
        return torch.cat((mixed, leaves.unpad(self.leaves(q, k, v, keys, values, leaves))))

    def roots(self, q: Tensor, keys: Tensor, values: Tensor, group: int) -> Tensor:
        """Rows among themselves: q `(B, T, H, d)`, keys and values `(B * K, T, d)`."""
        count, width, heads, dim = q.shape
        out = []
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            size = end - start
            part = q[:, start:end].view(count, size, heads // group, group, dim)
            part = part.permute(0, 2, 3, 1, 4).reshape(-1, group * size, dim)
            mask = self.masks[0][start:end, :end].repeat(group, 1)
            scores = torch.baddbmm(mask, part, keys[:, :end].transpose(1, 2))
            mixed = torch.bmm(scores.softmax(-1), values[:, :end])
            out.append(by_position(mixed.view(count, -1, group, size, dim)))
        return out[0] if len(out) == 1 else torch.cat(out, 1)

    def leaves(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, leaves: Rows
    ) -> Tensor:
        """Leaves with their root and themselves. Returns `(B, S, H, d)`."""
        fan, width, count = self.forest.fan, leaves.width, self.forest.roots.count
        heads, narrow, dim = q.shape[1], k.shape[1], q.shape[2]
        group = heads // narrow
        queries = leaves.pad(q).view(count, fan, width, narrow, group, dim)
        queries = queries.permute(0, 3, 1, 4, 2, 5).contiguous()  # (R, K, G, E, S, d)
        to_root = queries.view(count * narrow, fan * group * width, dim)
        to_self = queries.view(count * narrow * fan, group * width, dim)
        own_k, own_v = (
            leaves.pad(x)
            .view(count, fan, width, narrow, dim)
            .permute(0, 3, 1, 2, 4)
            .reshape(-1, width, dim)
            for x in (k, v)
        )
        far = torch.bmm(to_root, keys.transpose(1, 2))
        if self.beyond is not None:
            far = far.view(count, narrow, -1, far.shape[-1]) + self.beyond[:, None]
        near = torch.baddbmm(self.masks[1].repeat(group, 1), to_self, own_k.transpose(1, 2))
        far = far.view(-1, group * width, keys.shape[1])
        weights = torch.cat((far, near), -1).softmax(-1)
        far, near = weights.split([keys.shape[1], width], -1)
        mixed = torch.bmm(far.reshape(to_root.shape[0], -1, keys.shape[1]), values)
        mixed = torch.baddbmm(mixed.view(to_self.shape), near, own_v)
        mixed = mixed.view(count, narrow, fan, group, width, dim).permute(0, 2, 4, 1, 3, 5)
        return mixed.reshape(count * fan, width, heads, dim)


def by_head(rows: Tensor) -> Tensor:
    """`(B, T, K, d)` to `(B * K, T, d)`."""
    return rows.transpose(1, 2).reshape(-1, rows.shape[1], rows.shape[3])


def by_position(mixed: Tensor) -> Tensor:
    """`(B, K, E, T, d)` to `(B, T, K * E, d)`."""
    count, narrow, group, width, dim = mixed.shape
    return mixed.permute(0, 3, 1, 2, 4).reshape(count, width, narrow * group, dim)


def causal(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`(T, T)`: 0 where a query may look, -inf after it."""
    full = torch.full((width, width), float("-inf"), dtype=dtype, device=device)
    return full.triu_(1)
