"""Accuracy against length: which problems are in which group, and what share of them is right."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from posttrain.lab.lengths import by_length, held_out
from posttrain.lab.worlds import world_of
from posttrain.scale import Scale


def problems_of(lengths: list[int]) -> list[Any]:
    return [SimpleNamespace(solution="x" * length) for length in lengths]


def score_of(correct: list[int], k: int) -> Any:
    return SimpleNamespace(correct_counts=np.array(correct), k=k)


def test_problems_of_both_splits_are_sorted_by_the_length_of_their_solution() -> None:
    problems = {"usual": problems_of([5, 1, 3, 1]), "longer": problems_of([9, 7])}
    scores = {"usual": score_of([1, 4, 2, 4], 4), "longer": score_of([0, 1], 2)}
    letters = SimpleNamespace(encode=list)
    found = by_length(problems, scores, letters, groups=3)
    assert [record["tokens"] for record in found] == [1.0, 4.0, 8.0]
    assert [record["pass@1"] for record in found] == pytest.approx([1.0, 0.375, 0.25])
    (whole,) = by_length(problems, scores, letters, groups=1)
    assert whole["pass@1"] == pytest.approx((11 / 4 + 1 / 2) / 6)


def test_a_world_without_longer_problems_is_measured_on_the_usual_ones() -> None:
    world = world_of(Scale.SMOKE)
    both = held_out(world, usual=3, longer=2)
    assert {name: len(some) for name, some in both.items()} == {"usual": 3, "longer": 2}
    assert set(held_out(world_of(Scale.SMOKE, "stories"), 3, 0)) == {"usual"}
