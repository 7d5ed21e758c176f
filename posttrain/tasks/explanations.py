"""Worked explanations of math problems, better and worse: what rubrics of explanations judge.

A good explanation quotes each change, computes it, and states the answer. `explain` writes what a
person with `Gap`s and the misconceptions of the math task would write.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from enum import Enum

from posttrain.tasks import math
from posttrain.tasks.draws import pick

SHARE = 0.25  # of people who have a gap or a misconception, each independently


class Gap(Enum):
    """What may be missing or wrong in an explanation besides the mathematics."""

    NO_QUOTE = "computes some changes without saying which"
    NO_EQUATION = "says what some changes are without computing them"
    REPEATS = "does a step twice"
    NO_ANSWER = "does not state the answer"
    OTHER_ANSWER = "states an answer that does not follow from the work"


def person(rng: random.Random) -> tuple[frozenset[math.Misconception], frozenset[Gap]]:
    """The misconceptions and gaps of a random person."""
    misconceptions = frozenset(m for m in math.Misconception if rng.random() < SHARE)
    return misconceptions, frozenset(gap for gap in Gap if rng.random() < SHARE)


def explain(
    problem: math.MathProblem,
    rng: random.Random,
    misconceptions: Set[math.Misconception] = frozenset(),
    gaps: Set[Gap] = frozenset(),
) -> str:
    """The explanation that such a person writes; with neither, the problem's own solution."""
    work, answer = math.solve(problem, misconceptions).rsplit(" The answer is ", 1)
    steps = work.removesuffix(".").split(". ")
    if Gap.NO_EQUATION in gaps and problem.told:
        steps = _some(steps, rng, lambda step: step.split(": ")[0])
    if Gap.NO_QUOTE in gaps:
        steps = _some(steps, rng, lambda step: step.split(": ")[-1])
    if Gap.REPEATS in gaps:
        steps.insert(int(rng.random() * (len(steps) + 1)), pick(rng, steps))
    if Gap.OTHER_ANSWER in gaps:
        answer = f"{int(answer.removesuffix('.')) + 1 + int(rng.random() * 9)}."
    if Gap.NO_ANSWER in gaps:
        return f"{'. '.join(steps)}."
    return f"{'. '.join(steps)}. The answer is {answer}"


def _some(steps: list[str], rng: random.Random, change: Callable[[str], str]) -> list[str]:
    """Each step changed with probability one half, and one of them in any case."""
    certain = int(rng.random() * len(steps))
    return [change(s) if i == certain or rng.random() < 0.5 else s for i, s in enumerate(steps)]
