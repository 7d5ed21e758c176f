"""Explanations by people with gaps: each gap seen from outside."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tasks import math
from posttrain.tasks.draws import seeded
from posttrain.tasks.explanations import SHARE, Gap, explain, person
from posttrain.tasks.math import Misconception


@given(st.sampled_from(list(math.Split)), st.integers(0, 10**6))
def test_without_gaps_it_is_the_solution_of_such_a_solver(split: math.Split, i: int) -> None:
    problem, misconceptions = math.problem(split, i), person(seeded(i))[0]
    assert explain(problem, seeded(i)) == problem.solution
    assert explain(problem, seeded(i), misconceptions) == math.solve(problem, misconceptions)


@pytest.mark.parametrize("i", range(60))
def test_each_gap_is_what_it_says(i: int) -> None:
    problem = math.problem("train", i, steps=(2, 4))
    quotes = [change.words for change in problem.changes if problem.told]

    def written(gap: Gap) -> str:
        return explain(problem, seeded(i), frozenset(), {gap})

    def quoted(text: str) -> int:
        return sum(f"{quote}: " in text for quote in quotes)

    text = written(Gap.NO_QUOTE)
    assert math.EQUATION.findall(text) == list(problem.equations)
    assert quoted(text) < len(quotes) or not quotes
    assert problem.grade(text).correct
    text = written(Gap.NO_EQUATION)
    assert all(quote in text for quote in quotes)
    assert len(math.EQUATION.findall(text)) < len(problem.equations) or not quotes
    text = written(Gap.REPEATS)
    assert len(re.findall(r"\. ", text)) == len(problem.changes) + 1
    assert set(math.EQUATION.findall(text)) == set(problem.equations)
    assert len(math.EQUATION.findall(text)) > len(problem.equations)
    text = written(Gap.NO_ANSWER)
    assert not problem.grade(text).parsed
    assert problem.grade_steps(text) == 1
    text = written(Gap.OTHER_ANSWER)
    assert problem.grade(text).parsed
    assert not problem.grade(text).correct
    assert problem.grade_steps(text) == 1


def test_people_have_gaps_and_misconceptions_as_often_as_documented() -> None:
    n, rng = 4000, seeded("people")
    people = [person(rng) for _ in range(n)]
    for weakness in [*Misconception, *Gap]:
        count = sum(weakness in misconceptions | gaps for misconceptions, gaps in people)
        assert count / n == pytest.approx(SHARE, abs=4 * (SHARE * (1 - SHARE) / n) ** 0.5)
