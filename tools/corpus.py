"""The pretraining corpus: worked problems of mixed quality, written by fallible solvers.

A document is one problem and its answer, or several by the same solver (demonstrations followed
by an answer, so that the model learns to do in context as it is shown). Each solver has each
misconception with the same probability, independently, so on a problem where one applies the
*usual* answer is wrong: the errors do not average out, and greedy decoding repeats them. Only
problems of the training split are used, and never the chat format.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass

from posttrain.tasks import math

SEPARATOR = "\n\n"  # between the problems of one document


@dataclass(frozen=True)
class Mixture:
    """Shares of what the corpus is made of, each a probability."""

    misconception: float = 0.55  # that a solver has a given misconception
    thought: float = 0.6  # that a document shows its work; else only answers
    several: float = 0.35  # that a document holds several problems


def block(problem: math.MathProblem, misconceptions: Set[math.Misconception], work: bool) -> str:
    """One problem with a solver's answer, in the form the base model knows."""
    solution = math.solve(problem, misconceptions)
    if not work:
        solution = solution[solution.index("The answer") :]
    return f"Question: {problem.question}\nAnswer: {solution}"


def documents(seed: int, mixture: Mixture) -> Iterator[str]:
    """The endless sequence of documents that `seed` defines."""
    rng = random.Random(seed)
    source = math.stream(math.Split.TRAIN, seed=seed)
    while True:
        solver = frozenset(m for m in math.Misconception if rng.random() < mixture.misconception)
        work = rng.random() < mixture.thought
        count = rng.randint(2, 3) if rng.random() < mixture.several else 1
        yield SEPARATOR.join(block(next(source), solver, work) for _ in range(count))
