"""Accuracy against the length of the answer: where mistakes add up, long answers suffer first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.evals import Score, evaluate
from posttrain.lab.worlds import World


def held_out(world: World, usual: int | None, longer: int | None) -> dict[str, Sequence[Any]]:
    """The first problems of the splits that the world has: `usual`, and `longer` where it can."""
    splits = {"usual": world.test[:usual], "longer": world.ood[:longer]}
    return {name: problems for name, problems in splits.items() if problems}


def scores_of(
    sampler: Any, problems: Mapping[str, Sequence[Any]], k: int, world: World
) -> dict[str, Score]:
    """`evaluate` on each of the sets of problems."""
    return {
        name: evaluate(sampler, some, k, play=world.play, max_tokens=world.max_tokens)
        for name, some in problems.items()
    }


def by_length(
    problems: Mapping[str, Sequence[Any]],
    scores: Mapping[str, Score],
    tokenizer: Any,
    groups: int = 5,
) -> list[dict[str, float]]:
    """Pass@1 of problems sorted by their worked solution, in groups of nearly equal size.

    Returns one record per group, as `posttrain.plots.curves` draws them: `tokens`, the mean length
    of the solutions, and `pass@1`, between 0 and 1.
    """
    items = [item for some in problems.values() for item in some]
    lengths = np.array([len(tokenizer.encode(item.solution)) for item in items])
    right = np.concatenate([scores[name].correct_counts / scores[name].k for name in problems])
    order = np.argsort(lengths, kind="stable")
    return [
        {"tokens": float(lengths[some].mean()), "pass@1": float(right[some].mean())}
        for some in np.array_split(order, groups)
    ]
