"""Pretraining text with stack programs of mixed quality.

Some authors write what was asked. Others have a misconception, on all their programs: operands of
a difference the wrong way round, `max` taken for `min`, brackets ignored, `if` with its branches
exchanged. A few know the shown tests by heart and write that down.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from posttrain.tasks.blocks import SEPARATOR, block
from posttrain.tasks.code import CodeProblem, Formula, problem
from posttrain.tasks.draws import Split


class Habit(Enum):
    """How an author writes programs."""

    CORRECT = "as asked"
    REVERSES = "subtracts the wrong way round"
    SWAPS_EXTREMES = "takes max for min and min for max"
    DOUBLES_ONCE = "multiplies by two once, whatever the power"
    SWAPS_BRANCHES = "exchanges the branches of an if"
    LOOKS_UP = "writes the shown tests as a table"


@dataclass(frozen=True)
class Mixture:
    """Shares of what the documents are made of, each a probability."""

    correct: float = 0.4  # that an author writes what was asked
    lookup: float = 0.06  # that an author writes the tests as a table
    several: float = 0.35  # that a document holds several programs


def misread(formula: Formula, habit: Habit) -> Formula:
    """The formula that an author with this habit writes down instead."""
    arguments = tuple(misread(argument, habit) for argument in formula.arguments)
    head = formula.head
    match habit, head:
        case Habit.REVERSES, "-":
            arguments = arguments[::-1]
        case Habit.SWAPS_EXTREMES, "max" | "min":
            head = "min" if head == "max" else "max"
        case Habit.DOUBLES_ONCE, "shift":
            arguments = (arguments[0], Formula("1"))
        case Habit.SWAPS_BRANCHES, "if":
            arguments = (arguments[0], arguments[2], arguments[1])
    return Formula(head, arguments)


def answer(task: CodeProblem, habit: Habit) -> str:
    """What an author with this habit answers."""
    if habit is Habit.LOOKS_UP:
        return task.lookup()
    return f"Program: {misread(task.formula, habit).program}."


def author(rng: random.Random, mixture: Mixture | None = None) -> Habit:
    """The habit of somebody who is drawn at random."""
    mixture = mixture or Mixture()
    kind = rng.random()
    wrong = [habit for habit in Habit if habit not in (Habit.CORRECT, Habit.LOOKS_UP)]
    habit: Habit = rng.choice(
        wrong
    )  # drawn in any case, so that what follows does not depend on it
    if kind < mixture.correct + mixture.lookup:
        habit = Habit.CORRECT if kind < mixture.correct else Habit.LOOKS_UP
    return habit


def documents(seed: int, mixture: Mixture | None = None) -> Iterator[str]:
    """The endless sequence of documents that `seed` defines, from training problems."""
    mixture = mixture or Mixture()
    rng = random.Random(f"code:{seed}")
    i = 0
    while True:
        habit = author(rng, mixture)
        count = rng.randint(2, 3) if rng.random() < mixture.several else 1
        tasks = [problem(Split.TRAIN, i + j, seed=seed) for j in range(count)]
        i += count
        yield SEPARATOR.join(block(task.question, answer(task, habit)) for task in tasks)
