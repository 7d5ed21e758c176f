"""Training examples arranged into passes of bounded size.

Shapes: B examples, T positions of the longest, K targets a position (1 except for soft targets).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.engine.datum import Datum
from posttrain.engine.forest import Forest, Group, share


@dataclass(frozen=True)
class Pass:
    """Examples that are computed together.

    Attributes:
        indices: which examples, in the order of the rows.
        cells: `(B, T)` int64, the position in the forest; 0 where `real` `(B, T)` is False.
        targets: `(B, T, K)`; inputs: the same shape, zero where an example has no value.
    """

    indices: list[int]
    forest: Forest
    cells: Tensor
    real: Tensor
    targets: Tensor
    inputs: dict[str, Tensor]


def passes(data: Sequence[Datum], tokens: int, pairs: int, device: torch.device) -> Iterator[Pass]:
    """Arrange data so that common beginnings are computed once, and similar shapes together.

    Args:
        tokens: upper bound of the positions of a pass, unless one example alone is longer.
        pairs: the same of pairs of positions, which bound the memory of attention.
    """
    groups = [
        part
        for group in share([datum.tokens for datum in data])
        for part in divided(group, data, tokens, pairs)
    ]
    for alone in (True, False):
        kind = [group for group in groups if (len(group.members) == 1) == alone]
        kind.sort(key=lambda group: shape(group, data), reverse=True)
        chosen: list[Group] = []
        for group in kind:
            if chosen and not fits([*chosen, group], data, tokens, pairs):
                yield collate(data, chosen, device)
                chosen = []
            chosen.append(group)
        if chosen:
            yield collate(data, chosen, device)


def shape(group: Group, data: Sequence[Datum]) -> tuple[int, int, int]:
    """Leaves, tokens of the longest leaf, and tokens of the root."""
    longest = max(len(data[member].tokens) for member in group.members)
    return len(group.members), longest - group.shared, group.shared


def fits(groups: list[Group], data: Sequence[Datum], tokens: int, pairs: int) -> bool:
    flat = sum(
        group.shared + sum(len(data[m].tokens) - group.shared for m in group.members)
        for group in groups
    )
    fan, leaf, root = (
        max(sizes) for sizes in zip(*(shape(group, data) for group in groups), strict=True)
    )
    seen = root * root + fan * leaf * (root + leaf)
    return flat <= tokens and len(groups) * seen <= pairs


def divided(group: Group, data: Sequence[Datum], tokens: int, pairs: int) -> list[Group]:
    """The group in halves, and so on, until each part fits; a part of one shares nothing."""
    members = group.members
    if len(members) == 1:
        return [Group(members, len(data[members[0]].tokens))]
    if fits([group], data, tokens, pairs):
        return [group]
    half = len(members) // 2
    return [
        part
        for piece in (members[:half], members[half:])
        for part in divided(Group(piece, group.shared), data, tokens, pairs)
    ]


def collate(data: Sequence[Datum], groups: Sequence[Group], device: torch.device) -> Pass:
    forest = Forest.plant([datum.tokens for datum in data], groups, device)
    indices = [member for group in groups for member in group.members]
    chosen = [data[index] for index in indices]
    rows, length = len(chosen), max(len(datum.tokens) for datum in chosen)
    width = max(datum.inputs["target_tokens"][0].size for datum in chosen)
    cells = np.zeros((rows, length), np.int64)
    real = np.zeros((rows, length), bool)
    targets = np.zeros((rows, length, width), np.int64)
    names = {name for datum in chosen for name in datum.inputs} - {"target_tokens"}
    inputs = {name: np.zeros((rows, length, width), np.float32) for name in names | {"weights"}}
    for row, datum in enumerate(chosen):
        end = len(datum.tokens)
        cells[row, :end] = forest.places[row]
        real[row, :end] = True
        found = datum.inputs["target_tokens"].reshape(end, -1)
        targets[row, :end, : found.shape[1]] = found
        inputs["weights"][row, :end, : found.shape[1]] = 1.0
        for name in names & datum.inputs.keys():
            inputs[name][row, :end, : found.shape[1]] = datum.inputs[name].reshape(end, -1)
    return Pass(
        indices,
        forest,
        torch.from_numpy(cells).to(device),
        torch.from_numpy(real).to(device),
        torch.from_numpy(targets).to(device),
        {name: torch.from_numpy(value).to(device) for name, value in inputs.items()},
    )
