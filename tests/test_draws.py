"""Draws that are the same everywhere: pinned, uniform, and exhausted pools are noticed."""

import itertools
from collections import Counter

import pytest
from scipy import stats

from posttrain.tasks import draws, math


def test_generators_follow_from_their_parts() -> None:
    assert draws.seeded("a", 1).random() == draws.seeded("a", "1").random()
    assert draws.seeded("a", 1).random() == 0.6761712869296087
    assert draws.seeded("a", 2).random() != draws.seeded("a", 1).random()


def test_picks_are_uniform_over_ordered_selections() -> None:
    rng = draws.seeded("picks")
    counts = Counter(tuple(draws.picks(rng, "abcd", 2)) for _ in range(6000))
    assert set(counts) == set(itertools.permutations("abcd", 2))
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    single = Counter(draws.pick(rng, "abc") for _ in range(6000))
    assert stats.chisquare(list(single.values())).pvalue > 0.001


def test_splits_agree_with_those_of_the_math_task() -> None:
    for problem in math.problems("train", 200) + math.problems("test", 50):
        assert draws.split_by_hash(problem.key) is math.split_of(problem)


def test_an_exhausted_pool_is_an_error() -> None:
    problems = math.problems("train", 3)
    assert draws.distinct(itertools.cycle(problems), 3) == problems
    with pytest.raises(ValueError, match="there are only 3 different items here, not 4"):
        draws.distinct(itertools.cycle(problems), 4)
