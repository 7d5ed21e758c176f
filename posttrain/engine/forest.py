"""Sequences laid out for one pass, each common beginning once.

A forest holds roots and leaves. A sequence is a root, or a root continued by a leaf; the leaves
of one root share it. Positions stand one after the other without padding, roots first, so layers
that work on single positions do no needless work; attention sees rows of equal width.

Shapes: N positions, R roots of width P, G leaves a root of width S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHARED = 8  # a common beginning shorter than this is not worth two kinds of rows


@dataclass(frozen=True)
class Group:
    """Sequences `members` (their indices) whose first `shared` tokens are the same."""

    members: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Rows:
    """Rows of equal width, cut from the flat positions `start` to `end`.

    Attributes:
        into: `(count * width,)`, the flat position (from `start`) of each cell; a padding cell
            repeats one that exists. None where no row is padded.
        back: `(end - start,)`, the cell of each flat position.
        lengths: `(count,)`.
    """

    start: int
    end: int
    count: int
    width: int
    into: Tensor | None
    back: Tensor | None
    lengths: Tensor

    @classmethod
    def of(cls, lengths: np.ndarray, start: int, device: torch.device, step: int = 1) -> Rows:
        """Rows as wide as the longest, rounded up to a multiple of `step`."""
        count, total = len(lengths), int(lengths.sum())
        width = -(-int(lengths.max()) // step) * step
        sizes = torch.from_numpy(lengths).to(device)
        if total == count * width:
            return cls(start, start + total, count, width, None, None, sizes)
        real = np.arange(width) < lengths[:, None]
        cells = np.zeros((count, width), np.int64)
        cells[real] = np.arange(total)
        return cls(
            start,
            start + total,
            count,
            width,
            torch.from_numpy(cells.reshape(-1)).to(device),
            torch.from_numpy(np.flatnonzero(real)).to(device),
            sizes,
        )

    def pad(self, flat: Tensor) -> Tensor:
        """These rows `(count, width, ...)` of `flat` `(N, ...)`."""
        mine = flat[self.start : self.end]
        if self.into is not None and self.back is not None:
            mine = _Pad.apply(mine, self.into, self.back)
        return mine.view(self.count, self.width, *flat.shape[1:])

    def unpad(self, rows: Tensor) -> Tensor:
        """The positions `(end - start, ...)` of rows `(count, width, ...)`."""
        flat = rows.reshape(self.count * self.width, *rows.shape[2:])
        return flat if self.into is None else _Unpad.apply(flat, self.into, self.back)


class _Pad(torch.autograd.Function):
    """Autograd would not know that each position is read once, and would add where it may copy.

    A padding cell never has a gradient: nothing that is read depends on it.
    """

    @staticmethod
    def forward(ctx: object, flat: Tensor, into: Tensor, back: Tensor) -> Tensor:
        ctx.back = back  # type: ignore[attr-defined]
        return flat.index_select(0, into)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.back), None, None  # type: ignore[attr-defined]


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, rows: Tensor, into: Tensor, back: Tensor) -> Tensor:
        ctx.back, ctx.count = back, len(into)  # type: ignore[attr-defined]
        return rows.index_select(0, back)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        rows = grad.new_zeros(ctx.count, *grad.shape[1:])  # type: ignore[attr-defined]
        return rows.index_copy_(0, ctx.back, grad), None, None  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Forest:
    """Attributes:
    tokens, positions: `(N,)` each.
    fan: G, the leaves of each root, padded with empty ones; 0 without leaves.
    places: for each sequence, in the order in which the groups name them, the flat positions of
        its tokens.
    """

    tokens: Tensor
    positions: Tensor
    roots: Rows
    leaves: Rows | None
    fan: int
    places: list[np.ndarray]

    @classmethod
    def plant(
        cls,
        sequences: Sequence[np.ndarray],
        groups: Sequence[Group],
        device: torch.device,
        step: int = 1,
    ) -> Forest:
        """Lay out `groups` of `sequences`. A group of one is a root without leaves.

        Roots are padded to a multiple of `step` positions where attention looks at them.
        """
        firsts = [sequences[group.members[0]][: group.shared] for group in groups]
        roots = Rows.of(np.array([len(first) for first in firsts]), 0, device, step)
        tails = [[sequences[m][g.shared :] for m in g.members] for g in groups]
        fan = max(len(tail) for tail in tails)
        sizes = np.zeros((len(groups), fan), np.int64)
        for row, tail in enumerate(tails):
            sizes[row, : len(tail)] = [len(part) for part in tail]
        leaves = Rows.of(sizes.reshape(-1), roots.end, device) if sizes.any() else None
        parts = [*firsts, *(part for tail in tails for part in tail)]
        shift = [0] * len(firsts)
        shift += [g.shared for g, tail in zip(groups, tails, strict=True) for _ in tail]
        positions = [s + np.arange(len(part)) for s, part in zip(shift, parts, strict=True)]
        ends = np.cumsum([len(part) for part in parts])
        spans = [np.arange(end - len(p), end) for end, p in zip(ends, parts, strict=True)]
        places, at = [], len(firsts)
        for row, tail in enumerate(tails):
            places += [np.concatenate((spans[row], spans[at + i])) for i in range(len(tail))]
            at += len(tail)
        return cls(
            torch.from_numpy(np.concatenate(parts)).to(device),
            torch.from_numpy(np.concatenate(positions)).to(device),
            roots,
            leaves,
            fan if leaves is not None else 0,
            places,
        )


def share(sequences: Sequence[np.ndarray]) -> list[Group]:
    """Every sequence in one group, such that shared beginnings save many positions.

    Greedy along the lexicographic order: a sequence joins the group before it if the group, with
    what all then have in common, saves at least as many positions as without it.
    """
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    groups: list[Group] = []
    members: list[int] = []
    shared = 0
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        if members:
            common = agree(sequences[members[0]], sequences[index], shared)
            if common >= SHARED and len(members) * common >= (len(members) - 1) * shared:
                members.append(index)
                shared = common
                continue
            groups.append(Group(tuple(members), shared))
        members, shared = [index], len(sequences[index])
    return [*groups, Group(tuple(members), shared)] if members else groups


def agree(one: np.ndarray, two: np.ndarray, limit: int) -> int:
    """How many first tokens, at most `limit`, are the same."""
    length = min(len(one), len(two), limit)
    differ = np.flatnonzero(one[:length] != two[:length])
    return int(differ[0]) if len(differ) else length
