"""The pretraining corpus: worked problems of mixed quality, written by fallible solvers.

A document is one problem and its answer, or several by the same solver (demonstrations followed
by an answer, so that the model learns to do in context as it is shown). Only problems of the
training split are used, up to six steps long, and never the chat format.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass

from posttrain.tasks import math

SEPARATOR = "\n\n"  # between the problems of one document
LENGTHS = (0.26, 0.22, 0.17, 0.15, 0.10, 0.10)  # shares of problems with 1, 2, ... 6 steps


@dataclass(frozen=True)
class Mixture:
    """Shares of what the corpus is made of, each a probability."""

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
    by_length = [
        math.stream(math.Split.TRAIN, seed=seed, steps=(n, n)) for n in range(1, len(LENGTHS) + 1)
    ]
    while True:
        solver = math.solver(rng)
        work = rng.random() < mixture.thought
        count = rng.randint(2, 3) if rng.random() < mixture.several else 1
        problems = [next(source) for source in rng.choices(by_length, LENGTHS, k=count)]
        yield SEPARATOR.join(block(problem, solver, work) for problem in problems)
